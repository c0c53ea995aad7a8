// The tooltip of a point, and the same content as a sentence for screen readers.

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Fill the tooltip: x value, every series at it from high to low, each seed, and the note. */
function fillTip(tip, chart, point, sameX) {
  const rows = sameX.map(({ line, mark }) => {
    const row = element("tr", line === point.line ? "current" : "");
    row.append(element("td", "", swatch(chart, line.style)), element("th", "", line.key));
    row.append(element("td", "number", mark.text));
    return row;
  });
  const content = [element("p", "tip-x", `${chart.x_label}: ${point.mark.label}`)];
  content.push(element("table", "", element("tbody", "", ...rows)));
  if (chart.seeds.length > 1) content.push(element("p", "tip-seeds", seedText(chart, point.mark)));
  if (point.mark.note) content.push(element("p", "tip-note", point.mark.note));
  tip.replaceChildren(...content);
}

function seedText(chart, mark) {
  const known = chart.seeds.map((seed, n) => `seed ${seed}: ${mark.valueTexts[n]}`);
  return known.filter((_, n) => mark.values[n] !== null).join(" \u00b7 ");
}

/** The content of the tooltip as one sentence. */
function spokenText(chart, { line, mark }) {
  const parts = [line.title, `${chart.x_label} ${mark.label}`, mark.text];
  if (chart.seeds.length > 1) parts.push(seedText(chart, mark));
  return [...parts, mark.note].filter(Boolean).join(", ");
}

/** Place the tooltip right or left of the point, or below the panel if neither side fits. */
function placeTip(tip, plot, point, scale) {
  const x = point.x * scale, width = plot.clientWidth, needed = tip.offsetWidth + 14;
  const fitsRight = x + needed <= width, fitsLeft = x >= needed, fits = fitsRight || fitsLeft;
  const side = fitsRight ? x + 14 : x - needed;
  const middle = Math.max(0, point.y * scale - tip.offsetHeight / 2);
  tip.style.left = `${fits ? side : Math.max(0, (width - tip.offsetWidth) / 2)}px`;
  tip.style.top = `${fits ? middle : point.box.bottom * scale + 6}px`;
}
