// A chart as SVG for a width and a state; returns where its points are, so that they can be told.

const MARKERS = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
  "M-3.6-3.6h7.2v7.2h-7.2z",
  "M0-4.6L4.4 3.4H-4.4z",
  "M0-5L4.6 0L0 5L-4.6 0z",
  "M0 4.6L4.4-3.4H-4.4z",
  "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
];
const EDGE = { left: 40, right: 10, top: 34, bottom: 40 };

/** An SVG element; text is set as text, so no name can become markup. */
function shape(name, attributes = {}, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

/** Colour and dash of a style, by the rules of palette.py: 64 and on are the ramp. */
function styleClasses(style) {
  return style >= 64 ? `c${style - 56} d0` : `c${style % 8} d${style % 4}`;
}

function swatch(chart, style) {
  const inside = chart.kind === "bar"
    ? [shape("rect", { x: 8, y: -6, width: 12, height: 12, class: "bar" })]
    : [shape("path", { d: "M0 0H28", class: "line" }), marker(style, 14, 0)];
  const drawn = shape("g", { class: styleClasses(style) }, ...inside);
  return shape("svg", { class: "swatch", viewBox: "0 -8 28 16", "aria-hidden": "true" }, drawn);
}

function marker(style, x, y, size = 1) {
  const transform = `translate(${x} ${y}) scale(${size})`;
  return shape("path", { d: MARKERS[style % MARKERS.length], class: "mark", transform });
}

/** {svg, hits}; `panels` is [title, lines] of each panel. */
function drawing(chart, panels, state, width) {
  const columns = Math.max(1, Math.min(panels.length, Math.floor(width / 250)));
  const rows = Math.ceil(panels.length / columns);
  const height = columns === 1 && panels.length === 1 ? Math.max(260, Math.min(400, width * 0.54)) : 230;
  const svg = shape("svg", { class: "chart", viewBox: `0 0 ${width} ${rows * height}`, "aria-hidden": "true" });
  const at = positionsOf(chart, state.scale);
  const ranges = { xs: rangeX(chart, state.scale, at), ys: rangeY(chart, panels.flatMap(([, lines]) => lines)) };
  const hits = [];
  panels.forEach(([title, lines], number) => {
    const outer = { x: (number % columns) * (width / columns), y: Math.floor(number / columns) * height };
    const box = boxOf(outer, width / columns, height, ranges);
    frame(svg, chart, box, title, ticksOf(chart, state.scale, at));
    lines.forEach((line, place) => {
      const layer = shape("g", { class: `series ${styleClasses(line.style)}` });
      const draw = chart.kind === "bar" ? bars : curves;
      hits.push(...draw(layer, line, box, at, state.seeds, place, lines.length).map((hit) => ({ ...hit, line, box })));
      svg.append(layer);
    });
  });
  return { svg, hits, height: rows * height };
}

function boxOf(outer, width, height, { xs, ys }) {
  const left = outer.x + EDGE.left, top = outer.y + EDGE.top;
  const wide = width - EDGE.left - EDGE.right, high = height - EDGE.top - EDGE.bottom;
  return {
    left, top, right: left + wide, bottom: top + high, ys,
    x: (position) => left + (wide * (position - xs[0])) / (xs[1] - xs[0]),
    y: (value) => top + (high * (ys[1] - value)) / (ys[1] - ys[0]),
  };
}

function frame(svg, chart, box, title, ticks) {
  for (const value of roundNumbers(...box.ys)) {
    const y = box.y(value);
    const kind = value === 0 && box.ys[0] <= 0 ? "zero" : "grid";
    svg.append(
      shape("path", { d: `M${box.left} ${y}H${box.right}`, class: kind }),
      shape("text", { x: box.left - 6, y: y + 4, class: "tick end" }, String(value)),
    );
  }
  for (const [x, words] of thinned(ticks.map(([place, words]) => [box.x(place), words])))
    svg.append(
      shape("path", { d: `M${x} ${box.bottom}v4`, class: "grid" }),
      shape("text", { x, y: box.bottom + 17, class: "tick middle" }, words),
    );
  const above = { x: box.left - 34, y: box.top - 14, class: title ? "panel-title" : "axis" };
  svg.append(
    shape("text", above, title || chart.y_label),
    shape("text", { x: box.right, y: box.bottom + 34, class: "axis end" }, chart.x_label),
  );
}

/** The mean in its band, or every seed as a line of its own. */
function curves(layer, line, box, at, everySeed) {
  const points = line.marks.map((mark) => ({ mark, x: box.x(at.get(mark.x)), y: box.y(mark.mean) }));
  const path = (places) => `M${places.map(([x, y]) => `${x} ${y}`).join("L")}`;
  if (everySeed) {
    for (const seed of line.seeds) {
      const known = points.filter(({ mark }) => mark.values[seed] !== null);
      const places = known.map(({ mark, x }) => [x, box.y(mark.values[seed])]);
      if (!places.length) continue;
      layer.append(shape("path", { d: path(places), class: "line thin" }));
      layer.append(...places.map(([x, y]) => marker(line.style, x, y, 0.6)));
    }
  } else if (points.length) {
    const upper = points.map(({ mark, x }) => [x, box.y(mark.mean + mark.error)]);
    const lower = points.map(({ mark, x }) => [x, box.y(mark.mean - mark.error)]).reverse();
    layer.append(shape("path", { d: `${path([...upper, ...lower])}z`, class: "band" }));
    layer.append(shape("path", { d: path(points.map(({ x, y }) => [x, y])), class: "line" }));
    layer.append(...points.map(({ x, y }) => marker(line.style, x, y)));
  }
  return points;
}

/** Bars from 0 side by side, with their standard error or with every seed as a dot. */
function bars(layer, line, box, at, everySeed, place, lines) {
  const wide = 0.8 / lines;
  return line.marks.map((mark) => {
    const first = at.get(mark.x) - 0.4 + place * wide;
    const left = box.x(first), width = Math.max(box.x(first + wide) - left - 1, 1);
    const top = Math.min(box.y(0), box.y(mark.mean)), height = Math.abs(box.y(0) - box.y(mark.mean));
    const x = left + width / 2;
    layer.append(shape("rect", { x: left, y: top, width, height, class: everySeed ? "bar faint" : "bar" }));
    if (everySeed) layer.append(...seedDots(mark, box, left, width));
    else if (mark.error) {
      const d = `M${x} ${box.y(mark.mean - mark.error)}V${box.y(mark.mean + mark.error)}`;
      layer.append(shape("path", { d, class: "whisker" }));
    }
    return { mark, x, y: box.y(mark.mean) };
  });
}

function seedDots(mark, box, left, width) {
  const known = mark.values.filter((value) => value !== null);
  return known.map((value, number) => {
    const cx = left + (width * (number + 1)) / (known.length + 1);
    return shape("circle", { cx, cy: box.y(value), r: Math.min(2.6, width / 4 + 0.6), class: "dot" });
  });
}
