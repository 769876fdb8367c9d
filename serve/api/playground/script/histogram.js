// Histograms as SVG, with a summary in words.
const HEIGHT = 170;
const FOOT = 22; // height of the axis labels, included in HEIGHT

/** Return bin edges at round numbers; more bins for more values. */
function binEdges(values) {
  const wanted = Math.min(32, Math.max(8, 2 * Math.sqrt(values.length)));
  const low = Math.min(...extremes(values));
  const high = Math.max(...extremes(values));
  const step = roundStep((high - low || 1) / wanted);
  const first = Math.floor(low / step);
  const last = Math.max(first + 1, Math.floor(high / step) + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** Return minimum and maximum; `Math.min(...values)` fails for too many values. */
function extremes(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function roundStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= step * 0.9999);
}

function counts(values, edges) {
  const bins = new Array(edges.length - 1).fill(0);
  const step = edges[1] - edges[0];
  for (const value of values) {
    bins[Math.min(bins.length - 1, Math.max(0, Math.floor((value - edges[0]) / step)))] += 1;
  }
  return bins;
}

function summary(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return `mean ${number(mean)}, median ${number(median)}, from ${number(sorted[0])} to ${number(sorted.at(-1))}`;
}

/** Plot a histogram of several series, each `{name, values, series}`. */
function histogram(title, all) {
  const shown = all.filter(({ values }) => values.length);
  const edges = binEdges(shown.flatMap(({ values }) => values));
  const binned = shown.map(({ values }) => counts(values, edges));
  const top = Math.max(...binned.flat());
  const span = edges.at(-1) - edges[0];
  const wide = innerWidth < 640 ? 300 : 520; // keeps the size of the labels about equal
  const x = (value) => ((value - edges[0]) / span) * wide;
  const y = (many) => HEIGHT - FOOT - (many / top) * (HEIGHT - FOOT - 8);
  const words = shown.map(({ name, values }) => `${name}: ${plural(values.length, "value")}, ${summary(values)}`);
  const picture = svgElement("svg", { viewBox: `-8 0 ${wide + 16} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${words.join(". ")}.` });
  binned.forEach((bins, s) => bins.forEach((many, i) => {
    if (!many) return;
    const width = (wide / bins.length - 2) / shown.length; // bars of the series are side by side
    const about = svgElement("title");
    about.textContent = `${shown[s].name}, ${round(edges[i])} to ${round(edges[i + 1])}: ${many}`;
    picture.append(svgElement("rect", {
      x: x(edges[i]) + 1 + s * width, y: y(many), width, height: HEIGHT - FOOT - y(many), class: `s${shown[s].series}`,
    }, about));
  }));
  picture.append(svgElement("line", { x1: 0, x2: wide, y1: HEIGHT - FOOT, y2: HEIGHT - FOOT, class: "axis" }));
  if (edges[0] < 0 && edges.at(-1) > 0) {
    picture.append(svgElement("line", { x1: x(0), x2: x(0), y1: 2, y2: HEIGHT - FOOT, class: "axis zero-line" }));
  }
  for (const value of tickValues(edges)) {
    const text = svgElement("text", { x: x(value), y: HEIGHT - 6, "text-anchor": "middle" });
    text.textContent = round(value);
    picture.append(text);
  }
  return el("figure", { class: "card plot" },
    el("h3", {}, title),
    picture,
    el("figcaption", { class: "soft small" }, shown.map(({ name, values, series }) => {
      const key = el("span", { class: "key" });
      key.style.background = color(series);
      return el("p", {}, key, `${name}: ${summary(values)}`);
    })),
  );
}

/** Choose about seven edges as ticks, including zero if it is an edge. */
function tickValues(edges) {
  const every = Math.ceil((edges.length - 1) / 7);
  const zero = edges.findIndex((edge) => Math.abs(edge) < 1e-9);
  return edges.filter((_, i) => (i - Math.max(0, zero)) % every === 0);
}

const round = (value) => number(value, { digits: Number.isInteger(Number(value.toFixed(6))) ? 0 : Math.abs(value) < 0.1 ? 2 : 1 });
