// How numbers are spread, as a drawing and in words.
const HEIGHT = 170;
const FOOT = 22; // of it, for the numbers below

/** Edges of bins at round numbers; more bins for more values. */
function edgesOf(values) {
  const wanted = Math.min(32, Math.max(8, 2 * Math.sqrt(values.length)));
  const low = Math.min(...extremes(values));
  const high = Math.max(...extremes(values));
  const step = roundStep((high - low || 1) / wanted);
  const first = Math.floor(low / step);
  const last = Math.max(first + 1, Math.floor(high / step) + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** Least and greatest; values may be too many to be arguments. */
function extremes(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function roundStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= step * 0.9999);
}

function counts(values, edges) {
  const found = new Array(edges.length - 1).fill(0);
  const step = edges[1] - edges[0];
  for (const value of values) {
    found[Math.min(found.length - 1, Math.max(0, Math.floor((value - edges[0]) / step)))] += 1;
  }
  return found;
}

function summary(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return `mean ${number(mean)}, median ${number(median)}, from ${number(sorted[0])} to ${number(sorted.at(-1))}`;
}

/** A figure of one or two series, each `{name, values, series}`. */
function histogram(title, all) {
  const shown = all.filter(({ values }) => values.length);
  const edges = edgesOf(shown.flatMap(({ values }) => values));
  const binned = shown.map(({ values }) => counts(values, edges));
  const top = Math.max(...binned.flat());
  const span = edges.at(-1) - edges[0];
  const wide = innerWidth < 640 ? 300 : 520; // so that its numbers are of about one size
  const x = (value) => ((value - edges[0]) / span) * wide;
  const y = (many) => HEIGHT - FOOT - (many / top) * (HEIGHT - FOOT - 8);
  const words = shown.map(({ name, values }) => `${name}: ${things(values.length, "value")}, ${summary(values)}`);
  const picture = draw("svg", { viewBox: `-8 0 ${wide + 16} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${words.join(". ")}.` });
  binned.forEach((bins, s) => bins.forEach((many, i) => {
    if (!many) return;
    const width = (wide / bins.length - 2) / shown.length; // series stand side by side
    const about = draw("title");
    about.textContent = `${shown[s].name}, ${round(edges[i])} to ${round(edges[i + 1])}: ${many}`;
    picture.append(draw("rect", {
      x: x(edges[i]) + 1 + s * width, y: y(many), width, height: HEIGHT - FOOT - y(many), class: `s${shown[s].series}`,
    }, about));
  }));
  picture.append(draw("line", { x1: 0, x2: wide, y1: HEIGHT - FOOT, y2: HEIGHT - FOOT, class: "axis" }));
  if (edges[0] < 0 && edges.at(-1) > 0) {
    picture.append(draw("line", { x1: x(0), x2: x(0), y1: 2, y2: HEIGHT - FOOT, class: "axis zero-line" }));
  }
  for (const value of ticksOf(edges)) {
    const text = draw("text", { x: x(value), y: HEIGHT - 6, "text-anchor": "middle" });
    text.textContent = round(value);
    picture.append(text);
  }
  return el("figure", { class: "card figure" },
    el("h3", {}, title),
    picture,
    el("figcaption", { class: "soft small" }, shown.map(({ name, values, series }) => {
      const key = el("span", { class: "key" });
      key.style.background = colour(series);
      return el("p", {}, key, `${name}: ${summary(values)}`);
    })),
  );
}

/** About seven edges, zero among them if it is an edge. */
function ticksOf(edges) {
  const every = Math.ceil((edges.length - 1) / 7);
  const zero = edges.findIndex((edge) => Math.abs(edge) < 1e-9);
  return edges.filter((_, i) => (i - Math.max(0, zero)) % every === 0);
}

const round = (value) => number(value, { digits: Number.isInteger(Number(value.toFixed(6))) ? 0 : Math.abs(value) < 0.1 ? 2 : 1 });
