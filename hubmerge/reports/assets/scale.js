// Axis positions, ranges and ticks, with the same rules as scales.py.

const MOST_TICKS = 14;
const LETTER_WIDTH = 6.8;  // of a tick label, in pixels

/** x value -> axis position; on a log axis, 0 is one octave before the first value. */
function positionsOf(chart, scale) {
  const xs = chart.x_labels.map(([x]) => x);
  if (scale === "category") return new Map(xs.map((x, index) => [x, index]));
  if (scale === "linear") return new Map(xs.map((x) => [x, x]));
  const positive = xs.filter((x) => x > 0);
  const first = positive.length ? Math.min(...positive) : 1;
  return new Map(xs.map((x) => [x, x > 0 ? Math.log2(x) : Math.log2(first) - 1]));
}

/** [position, label] of the ticks on x; round numbers where a log axis is shown as linear. */
function ticksOf(chart, scale, xOf) {
  const useRoundNumbers = chart.scale === "log2" || chart.x_labels.length > MOST_TICKS;
  if (scale === "linear" && useRoundNumbers) {
    const all = [...xOf.values()];
    return roundNumbers(Math.min(0, ...all), Math.max(...all)).map((tick) => [tick, String(tick)]);
  }
  return chart.x_labels.map(([x, label]) => [xOf.get(x), shorten(label)]);
}

/** The range of the x axis, with a margin; a log axis shown as linear starts at 0. */
function rangeX(chart, scale, xOf) {
  const all = xOf.size ? [...xOf.values()] : [0];
  if (scale !== chart.scale && scale === "linear") all.push(0);
  const low = Math.min(...all), high = Math.max(...all);
  const margin = chart.kind === "bar" || low === high ? 0.5 : 0.02 * (high - low);
  return [low - margin, high + margin];
}

/** The range of the y axis: every value and band of the lines; bars include 0. */
function rangeY(chart, lines) {
  const ends = chart.kind === "bar" ? [0] : [];
  for (const { marks } of lines)
    for (const { mean, error, values } of marks)
      ends.push(mean - error, mean + error, ...values.filter((value) => value !== null));
  if (!ends.length) return [0, 1];
  const low = Math.min(...ends), high = Math.max(...ends);
  const margin = 0.06 * (high - low) || 1;
  if (chart.kind === "bar") return [low < 0 ? low - margin : 0, low < high && high === 0 ? 0 : high + margin];
  return [low - margin, high + margin];
}

/** About `about` round numbers within a range, in steps of 1, 2 or 5 times a power of ten. */
function roundNumbers(low, high, about = 5) {
  const rough = (high - low) / about;
  const power = rough > 0 ? 10 ** Math.floor(Math.log10(rough)) : 1;
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toFixed(10)));
}

/** Every tick, or every second, third ... tick, so that labels do not overlap (in pixels). */
function thinTicks(ticks) {
  const half = ([, label]) => ((label.length + 1) * LETTER_WIDTH) / 2;
  for (let every = 1; every < ticks.length; every++) {
    const kept = ticks.filter((_, index) => index % every === 0);
    const fits = (tick, index) => !index || kept[index - 1][0] + half(kept[index - 1]) <= tick[0] - half(tick);
    if (kept.every(fits)) return kept;
  }
  return ticks.slice(0, 1);
}

function shorten(label) {
  return label.length <= 14 ? label : `${label.slice(0, 13)}\u2026`;
}
