// Where things stand on an axis, by the rules of scales.py.

const MOST_NAMED = 14;
const LETTER = 6.8;

/** The position of each place on x, in steps of the scale; 0 stands one octave before the first. */
function positionsOf(chart, scale) {
  const xs = chart.places.map(([x]) => x);
  if (scale === "category") return new Map(xs.map((x, number) => [x, number]));
  if (scale === "linear") return new Map(xs.map((x) => [x, x]));
  const above = xs.filter((x) => x > 0);
  const first = above.length ? Math.min(...above) : 1;
  return new Map(xs.map((x) => [x, x > 0 ? Math.log2(x) : Math.log2(first) - 1]));
}

/** [position, words] of what is named on x; round numbers on a line that was made of a logarithm. */
function ticksOf(chart, scale, at) {
  const remade = chart.scale === "log2" || chart.places.length > MOST_NAMED;
  if (scale === "linear" && remade) {
    const all = [...at.values()];
    return roundNumbers(Math.min(0, ...all), Math.max(...all)).map((tick) => [tick, String(tick)]);
  }
  return chart.places.map(([x, words]) => [at.get(x), shortened(words)]);
}

/** The first and last position on x, with room; steps on a line are seen from 0. */
function rangeX(chart, scale, at) {
  const all = at.size ? [...at.values()] : [0];
  if (scale !== chart.scale && scale === "linear") all.push(0);
  const low = Math.min(...all), high = Math.max(...all);
  const room = chart.kind === "bar" || low === high ? 0.5 : 0.02 * (high - low);
  return [low - room, high + room];
}

/** What is seen of y: every value and band of the lines; bars stand on 0. */
function rangeY(chart, lines) {
  const ends = chart.kind === "bar" ? [0] : [];
  for (const { marks } of lines)
    for (const { mean, error, values } of marks)
      ends.push(mean - error, mean + error, ...values.filter((value) => value !== null));
  if (!ends.length) return [0, 1];
  const low = Math.min(...ends), high = Math.max(...ends);
  const room = 0.06 * (high - low) || 1;
  if (chart.kind === "bar") return [low < 0 ? low - room : 0, low < high && high === 0 ? 0 : high + room];
  return [low - room, high + room];
}

/** About so many round numbers within a range: steps of 1, 2 or 5 times a power of ten. */
function roundNumbers(low, high, about = 5) {
  const rough = (high - low) / about;
  const power = rough > 0 ? 10 ** Math.floor(Math.log10(rough)) : 1;
  const step = power * ([1, 2, 5].find((times) => times * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toFixed(10)));
}

/** Every tick, or every second, third ...: as many as their words have room for, in pixels. */
function thinned(ticks) {
  const half = ([, words]) => ((words.length + 1) * LETTER) / 2;
  for (let apart = 1; apart < ticks.length; apart++) {
    const kept = ticks.filter((_, number) => number % apart === 0);
    const fits = (tick, number) => !number || kept[number - 1][0] + half(kept[number - 1]) <= tick[0] - half(tick);
    if (kept.every(fits)) return kept;
  }
  return ticks.slice(0, 1);
}

function shortened(words) {
  return words.length <= 14 ? words : `${words.slice(0, 13)}\u2026`;
}
