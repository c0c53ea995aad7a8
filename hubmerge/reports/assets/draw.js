// Draws a chart as SVG for a width and a state, and returns the position of each point.

const MARKERS = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
  "M-3.6-3.6h7.2v7.2h-7.2z",
  "M0-4.6L4.4 3.4H-4.4z",
  "M0-5L4.6 0L0 5L-4.6 0z",
  "M0 4.6L4.4-3.4H-4.4z",
  "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
];
const EDGE = { left: 40, right: 10, top: 34, bottom: 40 };

/** An SVG element; text is appended as text nodes, so no name can become markup. */
function svgElement(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The classes for colour and dash of a style, as in palette.py: the ramp starts at 64. */
function styleClasses(style) {
  return style >= 64 ? `c${style - 56} d0` : `c${style % 8} d${style % 4}`;
}

function swatch(chart, style) {
  const shapes = chart.kind === "bar"
    ? [svgElement("rect", { x: 8, y: -6, width: 12, height: 12, class: "bar" })]
    : [svgElement("path", { d: "M0 0H28", class: "line" }), marker(style, 14, 0)];
  const group = svgElement("g", { class: styleClasses(style) }, ...shapes);
  return svgElement("svg", { class: "swatch", viewBox: "0 -8 28 16", "aria-hidden": "true" }, group);
}

function marker(style, x, y, size = 1) {
  const transform = `translate(${x} ${y}) scale(${size})`;
  return svgElement("path", { d: MARKERS[style % MARKERS.length], class: "mark", transform });
}

/** Returns {svg, points}; `panels` is [title, lines] of each panel. */
function draw(chart, panels, state, width) {
  const columns = Math.max(1, Math.min(panels.length, Math.floor(width / 250)));
  const rows = Math.ceil(panels.length / columns);
  const height = columns === 1 && panels.length === 1 ? Math.max(260, Math.min(400, width * 0.54)) : 230;
  const svg = svgElement("svg", { class: "chart", viewBox: `0 0 ${width} ${rows * height}`, "aria-hidden": "true" });
  const xOf = positionsOf(chart, state.scale);
  const ranges = { xs: rangeX(chart, state.scale, xOf), ys: rangeY(chart, panels.flatMap(([, lines]) => lines)) };
  const points = [];
  panels.forEach(([title, lines], number) => {
    const outer = { x: (number % columns) * (width / columns), y: Math.floor(number / columns) * height };
    const box = boxOf(outer, width / columns, height, ranges);
    drawFrame(svg, chart, box, title, ticksOf(chart, state.scale, xOf));
    lines.forEach((line, index) => {
      const layer = svgElement("g", { class: `series ${styleClasses(line.style)}` });
      const drawLine = chart.kind === "bar" ? drawBars : drawCurve;
      const drawn = drawLine(layer, line, box, xOf, state.seeds, index, lines.length);
      points.push(...drawn.map((point) => ({ ...point, line, box })));
      svg.append(layer);
    });
  });
  return { svg, points };
}

function boxOf(outer, width, height, { xs, ys }) {
  const left = outer.x + EDGE.left, top = outer.y + EDGE.top;
  const innerWidth = width - EDGE.left - EDGE.right, innerHeight = height - EDGE.top - EDGE.bottom;
  return {
    left, top, right: left + innerWidth, bottom: top + innerHeight, ys,
    x: (position) => left + (innerWidth * (position - xs[0])) / (xs[1] - xs[0]),
    y: (value) => top + (innerHeight * (ys[1] - value)) / (ys[1] - ys[0]),
  };
}

function drawFrame(svg, chart, box, title, ticks) {
  for (const value of roundNumbers(...box.ys)) {
    const y = box.y(value);
    const kind = value === 0 && box.ys[0] <= 0 ? "zero" : "grid";
    svg.append(
      svgElement("path", { d: `M${box.left} ${y}H${box.right}`, class: kind }),
      svgElement("text", { x: box.left - 6, y: y + 4, class: "tick end" }, String(value)),
    );
  }
  for (const [x, label] of thinTicks(ticks.map(([position, label]) => [box.x(position), label])))
    svg.append(
      svgElement("path", { d: `M${x} ${box.bottom}v4`, class: "grid" }),
      svgElement("text", { x, y: box.bottom + 17, class: "tick middle" }, label),
    );
  const titleAttributes = { x: box.left - 34, y: box.top - 14, class: title ? "panel-title" : "axis" };
  svg.append(
    svgElement("text", titleAttributes, title || chart.y_label),
    svgElement("text", { x: box.right, y: box.bottom + 34, class: "axis end" }, chart.x_label),
  );
}

/** The mean with a band, or one line per seed. */
function drawCurve(layer, line, box, xOf, everySeed) {
  const points = line.marks.map((mark) => ({ mark, x: box.x(xOf.get(mark.x)), y: box.y(mark.mean) }));
  const path = (positions) => `M${positions.map(([x, y]) => `${x} ${y}`).join("L")}`;
  if (everySeed) {
    for (const seed of line.seeds) {
      const known = points.filter(({ mark }) => mark.values[seed] !== null);
      const positions = known.map(({ mark, x }) => [x, box.y(mark.values[seed])]);
      if (!positions.length) continue;
      layer.append(svgElement("path", { d: path(positions), class: "line thin" }));
      layer.append(...positions.map(([x, y]) => marker(line.style, x, y, 0.6)));
    }
  } else if (points.length) {
    const upper = points.map(({ mark, x }) => [x, box.y(mark.mean + mark.error)]);
    const lower = points.map(({ mark, x }) => [x, box.y(mark.mean - mark.error)]).reverse();
    layer.append(svgElement("path", { d: `${path([...upper, ...lower])}z`, class: "band" }));
    layer.append(svgElement("path", { d: path(points.map(({ x, y }) => [x, y])), class: "line" }));
    layer.append(...points.map(({ x, y }) => marker(line.style, x, y)));
  }
  return points;
}

/** Bars from 0, side by side, with their standard error or with every seed as a dot. */
function drawBars(layer, line, box, xOf, everySeed, index, count) {
  const barWidth = 0.8 / count;
  return line.marks.map((mark) => {
    const first = xOf.get(mark.x) - 0.4 + index * barWidth;
    const left = box.x(first), width = Math.max(box.x(first + barWidth) - left - 1, 1);
    const top = Math.min(box.y(0), box.y(mark.mean)), height = Math.abs(box.y(0) - box.y(mark.mean));
    const x = left + width / 2;
    layer.append(svgElement("rect", { x: left, y: top, width, height, class: everySeed ? "bar faint" : "bar" }));
    if (everySeed) layer.append(...seedDots(mark, box, left, width));
    else if (mark.error) {
      const d = `M${x} ${box.y(mark.mean - mark.error)}V${box.y(mark.mean + mark.error)}`;
      layer.append(svgElement("path", { d, class: "whisker" }));
    }
    return { mark, x, y: box.y(mark.mean) };
  });
}

function seedDots(mark, box, left, width) {
  const known = mark.values.filter((value) => value !== null);
  return known.map((value, number) => {
    const cx = left + (width * (number + 1)) / (known.length + 1);
    return svgElement("circle", { cx, cy: box.y(value), r: Math.min(2.6, width / 4 + 0.6), class: "dot" });
  });
}
