// What is told of a point, in a box beside it and in words for who listens.

function element(name, className, ...inside) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...inside);
  return made;
}

/** Fill the box for a point: where, every series there from high to low, each seed, the note. */
function fillTip(tip, chart, hit, beside) {
  const rows = beside.map(({ line, mark }) => {
    const row = element("tr", line === hit.line ? "this" : "");
    row.append(element("td", "", swatch(chart, line.style)), element("th", "", line.key));
    row.append(element("td", "number", mark.words));
    return row;
  });
  const inside = [element("p", "tip-place", `${chart.x_label}: ${hit.mark.label}`)];
  inside.push(element("table", "", element("tbody", "", ...rows)));
  if (chart.seeds.length > 1) inside.push(element("p", "tip-seeds", seedWords(chart, hit.mark)));
  if (hit.mark.note) inside.push(element("p", "tip-note", hit.mark.note));
  tip.replaceChildren(...inside);
}

function seedWords(chart, mark) {
  const known = chart.seeds.map((seed, n) => `seed ${seed}: ${mark.said[n]}`);
  return known.filter((_, n) => mark.values[n] !== null).join(" \u00b7 ");
}

/** The same as one sentence. */
function spoken(chart, { line, mark }) {
  const parts = [line.title, `${chart.x_label} ${mark.label}`, mark.words];
  if (chart.seeds.length > 1) parts.push(seedWords(chart, mark));
  return [...parts, mark.note].filter(Boolean).join(", ");
}

/** Beside the point, on the side that has room; where neither has, below the panel. */
function placeTip(tip, plot, hit, scale) {
  const x = hit.x * scale, wide = plot.clientWidth, room = tip.offsetWidth + 14;
  const right = x + room <= wide, left = x >= room;
  const beside = right ? x + 14 : x - room;
  const middle = Math.max(0, hit.y * scale - tip.offsetHeight / 2);
  tip.style.left = `${left || right ? beside : Math.max(0, (wide - tip.offsetWidth) / 2)}px`;
  tip.style.top = `${left || right ? middle : hit.box.bottom * scale + 6}px`;
}
