// Counts over time as stacked bars. Colours come from the style sheet, so both themes are right.

const started = new WeakSet();
const TOKENS = { critical: "--chart-critical", high: "--chart-high", medium: "--chart-medium", low: "--chart-low" };
const OTHERS = ["--accent", "--good", "--high", "--low", "--medium", "--critical"];
let library;

export function startCharts(root) {
  root.querySelectorAll("[data-chart]").forEach((figure) => {
    if (started.has(figure)) return;
    started.add(figure);
    draw(figure);
  });
}

function load(figure) {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("../vendor/uplot.min.js", import.meta.url);
    script.onload = () => resolve(window.uPlot);
    script.onerror = reject;
    document.head.append(script);
  });
  return library;
}

async function draw(figure) {
  const [uPlot, answer] = await Promise.all([load(figure), fetch(figure.dataset.chart)]);
  if (!answer.ok) return;
  const series = await answer.json();
  const language = figure.dataset.language;
  const zone = figure.dataset.zone;
  const color = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    figure.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const lines = series.lines;
  const stacked = stack(lines.map((line) => line.counts));
  const bars = uPlot.paths.bars({ size: [0.82, 40], gap: 1 });
  const height = Number(figure.dataset.height);
  const tip = document.createElement("div");
  tip.className = "chart-tip";
  tip.hidden = true;
  const key = document.createElement("div");
  key.className = "chart-key";
  const chart = new uPlot({
    width: figure.clientWidth,
    height,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), zone),
    legend: { show: false },
    padding: [10, 20, 0, 0], // on the right, room for half a label under the last bar
    cursor: { y: false, drag: { x: true, y: false }, points: { show: false } },
    // Half a step on either side: a bar stands over the start of its time, and the first and last are as wide as the others.
    scales: { x: { range: (_, from, to) => [from - series.step_seconds / 2, to + series.step_seconds / 2] }, y: { range: (_, __, most) => [0, Math.max(4, most * 1.08)] } },
    axes: [
      { stroke: color("--ink-2"), grid: { show: false }, ticks: { show: false }, font: "12px Inter, sans-serif", size: 30, space: 70,
        values: (_, splits) => splits.map((at) => shortTime(at, series.step_seconds, language, zone)) },
      { stroke: color("--ink-2"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "12px Inter, sans-serif", size: 44,
        incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5, 1e6],
        values: (_, splits) => splits.map((count) => count.toLocaleString(language)) },
    ],
    series: [{}, ...lines.map((line, index) => ({
      label: line.label,
      fill: color(TOKENS[line.key] ?? OTHERS[index % OTHERS.length]),
      stroke: "transparent",
      width: 0,
      paths: bars,
      points: { show: false },
    })).reverse()],
    hooks: {
      setCursor: [(plot) => showTip(plot, tip, series, language, zone)],
      setSelect: [(plot) => zoom(plot, figure, series)],
    },
  }, [series.starts_at, ...stacked.reverse()], figure);
  figure.append(tip, key);
  chart.root.setAttribute("role", "img");
  chart.root.setAttribute("aria-label", figure.querySelector("figcaption").textContent.trim());
  lines.forEach((line, index) => {
    const entry = document.createElement("span");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `var(${TOKENS[line.key] ?? OTHERS[index % OTHERS.length]})`;
    entry.append(swatch, `${line.label} ${line.counts.reduce((sum, count) => sum + count, 0).toLocaleString(language)}`);
    key.append(entry);
  });
  new ResizeObserver(() => chart.setSize({ width: figure.clientWidth, height })).observe(figure);
  figure.dataset.drawn = "";
}

function stack(rows) {
  const sums = [];
  return rows.map((row) => row.map((count, index) => (sums[index] = (sums[index] ?? 0) + count)));
}

function shortTime(at, step, language, zone) {
  const date = new Date(at * 1000);
  const options = step >= 86400 ? { month: "numeric", day: "numeric" } : { hour: "2-digit", minute: "2-digit", hour12: false };
  const text = new Intl.DateTimeFormat(language, { ...options, timeZone: zone }).format(date);
  if (step < 86400 && text.startsWith("00:00")) return new Intl.DateTimeFormat(language, { month: "numeric", day: "numeric", timeZone: zone }).format(date);
  return text;
}

function showTip(plot, tip, series, language, zone) {
  const index = plot.cursor.idx;
  tip.hidden = index == null;
  if (index == null) return;
  const from = new Intl.DateTimeFormat(language, { month: "numeric", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false, timeZone: zone })
    .format(new Date(series.starts_at[index] * 1000));
  const parts = series.lines.filter((line) => line.counts[index]).map((line) => `${line.label} ${line.counts[index].toLocaleString(language)}`);
  tip.textContent = [from, parts.join(" · ") || "0"].join("  ");
  const left = plot.valToPos(series.starts_at[index], "x") + plot.over.offsetLeft;
  tip.style.left = `${Math.min(left + 12, Math.max(0, plot.root.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = "4px";
}

function zoom(plot, figure, series) {
  if (!plot.select.width || !series.drill) return;
  const address = new URL(series.drill, location.href);
  address.searchParams.set("since", Math.floor(plot.posToVal(plot.select.left, "x")));
  address.searchParams.set("until", Math.ceil(plot.posToVal(plot.select.left + plot.select.width, "x")));
  address.searchParams.delete("period");
  location.assign(address);
}
