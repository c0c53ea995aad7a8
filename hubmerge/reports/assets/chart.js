// A figure that answers: pointing, keys, a legend that hides, and switches.

const FIELDS = ["x", "label", "mean", "error", "words", "values", "said", "note"];

function readChart(figure) {
  const chart = JSON.parse(figure.querySelector(".chart-data").textContent);
  const asMark = (list) => Object.fromEntries(FIELDS.map((field, place) => [field, list[place]]));
  for (const line of chart.lines) line.marks = line.marks.map(asMark);
  return chart;
}

/** The lines as they are shown: the key is what has a colour, the panel what it is drawn in. */
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

function enliven(figure) {
  const chart = readChart(figure);
  const plot = figure.querySelector(".plot"), legend = figure.querySelector(".legend");
  const state = { seeds: false, scale: chart.scale, by: "group", hidden: new Set() };
  const tip = element("div", "tip"), live = element("p", "unseen");
  const cursor = shape("g", { class: "cursor" });
  let shown = { hits: [] }, current = null;
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  live.setAttribute("aria-live", "polite");
  figure.append(live);

  function redraw() {
    const width = Math.max(plot.clientWidth, 240);
    const lines = linesOf(chart, state).filter(({ key }) => !state.hidden.has(key));
    const last = current && { key: current.line.key, panel: current.line.panel, x: current.mark.x };
    shown = { ...drawing(chart, panelsOf(lines), state, width), width };
    shown.svg.append(cursor);
    plot.replaceChildren(shown.svg, tip);
    const same = ({ line, mark }) =>
      line.key === last.key && line.panel === last.panel && mark.x === last.x;
    point((last && shown.hits.find(same)) || null);
  }

  function point(hit) {
    current = hit;
    tip.hidden = !hit;
    cursor.replaceChildren();
    if (!hit) return;
    cursor.append(
      shape("path", { d: `M${hit.x} ${hit.box.top}V${hit.box.bottom}`, class: "guide" }),
      shape("circle", { cx: hit.x, cy: hit.y, r: 9, class: `ring ${styleClasses(hit.line.style)}` }),
    );
    const beside = shown.hits.filter(({ line, mark }) => line.panel === hit.line.panel && mark.x === hit.mark.x);
    fillTip(tip, chart, hit, beside.sort((a, b) => b.mark.mean - a.mark.mean));
    placeTip(tip, plot, hit, plot.clientWidth / shown.width);
  }

  plot.setAttribute("role", "application");
  plot.setAttribute("aria-roledescription", "chart; arrow keys move between points");
  plot.tabIndex = 0;
  const follow = (event) => point(nearest(plot, shown, event));
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && point(null));
  plot.addEventListener("blur", () => point(null));
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return point(null);
    const next = stepped(shown.hits, current, event.key);
    if (!next) return;
    event.preventDefault();
    point(next);
    live.textContent = spoken(chart, next);
  });
  const renew = () => { fillLegend(legend, chart, state, redraw); redraw(); };
  fillControls(figure.querySelector(".controls"), chart, state, renew);
  renew();
  new ResizeObserver(() => Math.abs(plot.clientWidth - shown.width) > 1 && redraw()).observe(plot);
}

/** The point that is nearest by x, then by y, in the panel that is pointed at. */
function nearest(plot, shown, event) {
  const seen = plot.getBoundingClientRect(), scale = shown.width / seen.width;
  const x = (event.clientX - seen.left) * scale, y = (event.clientY - seen.top) * scale;
  const inside = ({ box }) =>
    x >= box.left - 30 && x <= box.right + 10 && y >= box.top - 20 && y <= box.bottom + 20;
  const far = (hit) => Math.abs(hit.x - x) + Math.abs(hit.y - y) / 1000;
  return shown.hits.filter(inside).reduce((best, hit) => (!best || far(hit) < far(best) ? hit : best), null);
}

/** Where an arrow key leads: along the line, or to the next line at the same place. */
function stepped(hits, current, key) {
  if (!/^(Arrow|Home$|End$)/.test(key)) return null;
  if (!current) return hits[0] ?? null;
  const along = hits.filter(({ line }) => line === current.line);
  const across = hits
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

/** A button for each key: pressed is shown. */
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

function fillControls(controls, chart, state, renew) {
  const numbers = chart.scale !== "category" && chart.places.length > 2;
  const groups = [...new Set(chart.lines.map(({ group }) => group))];
  if (chart.seeds.length > 1)
    controls.append(choice("Values", state, "seeds", [[false, "mean \u00b1 standard error"], [true, "every seed"]], renew));
  if (numbers)
    controls.append(choice("Axis of x", state, "scale", [["log2", "log\u2082"], ["linear", "linear"]], renew));
  if (chart.is_split && groups.length < 9)
    controls.append(choice("Panels", state, "by", [["group", `by ${kindOf(groups)}`], ["name", "by series"]], () => { state.hidden.clear(); renew(); }));
  controls.hidden = !controls.childElementCount;
}

/** What groups have in common: "rank 2", "rank 4" are by rank. */
function kindOf(groups) {
  const firsts = new Set(groups.map((group) => group.split(" ")[0]));
  return firsts.size === 1 && groups.every((group) => group.includes(" ")) ? [...firsts][0] : "group";
}

/** Buttons of which one is pressed. */
function choice(label, state, field, values, changed) {
  const made = element("div", "choice");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  const buttons = values.map(([value, words]) => {
    const button = element("button", "", words);
    button.type = "button";
    button.addEventListener("click", () => { state[field] = value; show(); changed(); });
    return button;
  });
  const show = () => buttons.forEach((button, n) => button.setAttribute("aria-pressed", String(state[field] === values[n][0])));
  show();
  made.append(...buttons);
  return made;
}

document.querySelectorAll(".figure").forEach(enliven);
document.querySelector(".hint")?.removeAttribute("hidden");  // once says it for all
