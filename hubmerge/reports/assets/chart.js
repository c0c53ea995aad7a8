// Interactive figures: a tooltip, arrow keys, a legend that hides series, and switches.

// The fields of a mark, in the order of Mark in chart_data.py.
const FIELDS = ["x", "label", "mean", "error", "text", "values", "valueTexts", "note"];

function readChart(figure) {
  const chart = JSON.parse(figure.querySelector(".chart-data").textContent);
  const asMark = (list) => Object.fromEntries(FIELDS.map((field, index) => [field, list[index]]));
  for (const line of chart.lines) line.marks = line.marks.map(asMark);
  return chart;
}

/** The lines with their key (one colour and legend entry per key) and the panel they are drawn in. */
function linesOf(chart, state) {
  const byName = chart.is_split && state.by === "name";
  return chart.lines.map((line) => ({
    ...line,
    key: byName ? line.group : line.name,
    panel: !chart.is_split ? "" : byName ? line.name : line.group,
    style: byName ? line.group_style : line.style,
    title: chart.is_split ? `${line.group}: ${line.name}` : line.name,
    seeds: chart.seeds.map((_, number) => number),
  }));
}

function panelsOf(lines) {
  const titles = [...new Set(lines.map(({ panel }) => panel))];
  return titles.map((title) => [title, lines.filter(({ panel }) => panel === title)]);
}

function makeInteractive(figure) {
  const chart = readChart(figure);
  const plot = figure.querySelector(".plot"), legend = figure.querySelector(".legend");
  const state = { seeds: false, scale: chart.scale, by: "group", hidden: new Set() };
  const tip = element("div", "tip"), live = element("p", "visually-hidden");
  const cursor = svgElement("g", { class: "cursor" });
  let drawn = { points: [] }, current = null;
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  live.setAttribute("aria-live", "polite");
  figure.append(live);

  function redraw() {
    const width = Math.max(plot.clientWidth, 240);
    const lines = linesOf(chart, state).filter(({ key }) => !state.hidden.has(key));
    const last = current && { key: current.line.key, panel: current.line.panel, x: current.mark.x };
    drawn = { ...draw(chart, panelsOf(lines), state, width), width };
    drawn.svg.append(cursor);
    plot.replaceChildren(drawn.svg, tip);
    const same = ({ line, mark }) =>
      line.key === last.key && line.panel === last.panel && mark.x === last.x;
    select((last && drawn.points.find(same)) || null);
  }

  function select(point) {
    current = point;
    tip.hidden = !point;
    cursor.replaceChildren();
    if (!point) return;
    cursor.append(
      svgElement("path", { d: `M${point.x} ${point.box.top}V${point.box.bottom}`, class: "guide" }),
      svgElement("circle", { cx: point.x, cy: point.y, r: 9, class: `ring ${styleClasses(point.line.style)}` }),
    );
    const sameX = drawn.points.filter(({ line, mark }) => line.panel === point.line.panel && mark.x === point.mark.x);
    fillTip(tip, chart, point, sameX.sort((a, b) => b.mark.mean - a.mark.mean));
    placeTip(tip, plot, point, plot.clientWidth / drawn.width);
  }

  plot.setAttribute("role", "application");
  plot.setAttribute("aria-roledescription", "chart; arrow keys move between points");
  plot.tabIndex = 0;
  const follow = (event) => select(nearest(plot, drawn, event));
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && select(null));
  plot.addEventListener("blur", () => select(null));
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return select(null);
    const next = neighbour(drawn.points, current, event.key);
    if (!next) return;
    event.preventDefault();
    select(next);
    live.textContent = spokenText(chart, next);
  });
  const refresh = () => { fillLegend(legend, chart, state, redraw); redraw(); };
  fillControls(figure.querySelector(".controls"), chart, state, refresh);
  refresh();
  new ResizeObserver(() => Math.abs(plot.clientWidth - drawn.width) > 1 && redraw()).observe(plot);
}

/** The nearest point by x, then by y, in the panel under the pointer. */
function nearest(plot, drawn, event) {
  const bounds = plot.getBoundingClientRect(), scale = drawn.width / bounds.width;
  const x = (event.clientX - bounds.left) * scale, y = (event.clientY - bounds.top) * scale;
  const inside = ({ box }) =>
    x >= box.left - 30 && x <= box.right + 10 && y >= box.top - 20 && y <= box.bottom + 20;
  const distance = (point) => Math.abs(point.x - x) + Math.abs(point.y - y) / 1000;
  return drawn.points.filter(inside)
    .reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null);
}

/** The point that a key moves to: along the line, or to the next line at the same x. */
function neighbour(points, current, key) {
  if (!/^(Arrow|Home$|End$)/.test(key)) return null;
  if (!current) return points[0] ?? null;
  const along = points.filter(({ line }) => line === current.line);
  const across = points
    .filter(({ line, mark }) => line.panel === current.line.panel && mark.x === current.mark.x)
    .sort((a, b) => b.mark.mean - a.mark.mean);
  const moved = (list, by) =>
    list[Math.max(0, Math.min(list.length - 1, list.indexOf(current) + by))];
  const moves = {
    ArrowLeft: () => moved(along, -1), ArrowRight: () => moved(along, 1),
    ArrowUp: () => moved(across, -1), ArrowDown: () => moved(across, 1),
    Home: () => along[0], End: () => along.at(-1),
  };
  return moves[key]?.() ?? null;
}

/** A button for each key; pressed means that its lines are shown. */
function fillLegend(legend, chart, state, redraw) {
  const keys = new Map(linesOf(chart, state).map(({ key, style }) => [key, style]));
  const items = [...keys].map(([key, style]) => {
    const button = element("button", "key", swatch(chart, style), element("span", "", key));
    button.type = "button";
    button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
    button.addEventListener("click", () => {
      const hide = !state.hidden.has(key);
      if (hide) state.hidden.add(key); else state.hidden.delete(key);
      button.setAttribute("aria-pressed", String(!hide));
      redraw();
    });
    return element("li", "", button);
  });
  legend.replaceChildren(...items);
}

function fillControls(controls, chart, state, refresh) {
  const isNumeric = chart.scale !== "category" && chart.x_labels.length > 2;
  const groups = [...new Set(chart.lines.map(({ group }) => group))];
  if (chart.seeds.length > 1)
    controls.append(switchButtons("Values", state, "seeds", [[false, "mean \u00b1 standard error"], [true, "every seed"]], refresh));
  if (isNumeric)
    controls.append(switchButtons("Axis of x", state, "scale", [["log2", "log\u2082"], ["linear", "linear"]], refresh));
  if (chart.is_split && groups.length < 9)
    controls.append(switchButtons("Panels", state, "by", [["group", `by ${commonWord(groups)}`], ["name", "by series"]], () => { state.hidden.clear(); refresh(); }));
  controls.hidden = !controls.childElementCount;
}

/** The first word that all groups share: "rank" for "rank 2" and "rank 4". */
function commonWord(groups) {
  const firsts = new Set(groups.map((group) => group.split(" ")[0]));
  return firsts.size === 1 && groups.every((group) => group.includes(" ")) ? [...firsts][0] : "group";
}

/** A group of buttons, one of which is pressed. */
function switchButtons(label, state, field, values, onChange) {
  const group = element("div", "switch");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  const buttons = values.map(([value, text]) => {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => { state[field] = value; show(); onChange(); });
    return button;
  });
  const show = () => buttons.forEach((button, n) => button.setAttribute("aria-pressed", String(state[field] === values[n][0])));
  show();
  group.append(...buttons);
  return group;
}

document.querySelectorAll(".figure").forEach(makeInteractive);
document.querySelector(".hint")?.removeAttribute("hidden");  // the first hint is enough
