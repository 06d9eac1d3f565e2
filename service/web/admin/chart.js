// Charts over time, drawn by uPlot, each with its values as a table. Colours follow the theme, labels the language.

import uPlot from "../vendor/uplot.esm.js";
import { language, label, onLanguage, words } from "../text.js";
import { create } from "./elements.js";
import { formatValue } from "./format.js";
import { createTable } from "./table.js";

const HEIGHT = 200; // pixels
const DAY_SECONDS = 86_400;
const charts = new Set();

/**
 * Creates a chart with its table.
 *
 * text: key of the title. times: the beginning of each bucket, in ms. stepMs: its length.
 * series: [{ text, values, format, color, kind, dashed? }]: values, null for none; a format of format.js; a colour of
 *   style.css; `bars` or `line`.
 */
export function createChart({ text, times, stepMs, series }) {
  const plot = create("div", { className: "plot" });
  plot.setAttribute("role", "img");
  label(plot, text);
  const figure = create("figure", { className: "chart" }, createLegend(series), plot, createDetails(text, times, series));
  const chart = { figure, plot, times, stepMs, series, uplot: null };
  charts.add(chart);
  new ResizeObserver(() => draw(chart)).observe(plot);
  return figure;
}

function createLegend(series) {
  return create("ul", { className: "legend" }, ...series.map(({ text, color, dashed }) => {
    const swatch = create("span", { className: "swatch" });
    Object.assign(swatch.dataset, { color, dashed: Boolean(dashed) });
    return create("li", {}, swatch, create("span", { text }));
  }));
}

// The rows are created when the table is opened: an interval can have a thousand buckets.
function createDetails(text, times, series) {
  const details = create("details", { className: "values" }, create("summary", { text: "chart_values" }));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const table = createTable({
      caption: text,
      empty: { text: "chart_empty" },
      columns: [{ key: "time", text: "chart_time", format: "minute" }, ...series.map(({ text: name, format }, n) => ({ key: n, text: name, format }))],
    });
    table.setRows(times.map((time, n) => ({ time: new Date(time).toISOString(), ...series.map(({ values }) => values[n]) })));
    details.append(table.element);
  });
  return details;
}

function draw(chart) {
  const { plot, times, series } = chart;
  if (!plot.isConnected) return remove(chart);
  const width = plot.clientWidth;
  if (width === 0) return;
  if (chart.uplot) return chart.uplot.width === width || chart.uplot.setSize({ width, height: HEIGHT });
  chart.uplot = new uPlot(createOptions(chart, width), [times.map((time) => time / 1000), ...series.map(({ values }) => values)], plot);
}

function remove(chart) {
  chart.uplot?.destroy();
  chart.uplot = null;
  charts.delete(chart);
}

function redrawAll() {
  for (const chart of charts) {
    chart.uplot?.destroy();
    chart.uplot = null;
    draw(chart);
  }
}

onLanguage(redrawAll);
new MutationObserver(redrawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

function createOptions({ plot, stepMs, series }, width) {
  const color = (name) => resolveColor(plot, name);
  const step = stepMs / 1000;
  const axis = { stroke: color("soft"), font: `12px ${getComputedStyle(plot).fontFamily}`, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
    scales: { x: { range: (_, min, max) => [min - step / 2, max + step / 2] }, y: { range: (_, min, max) => [0, max > 0 ? max * 1.08 : 1] } },
    axes: [
      { ...axis, grid: { show: false }, space: 72, size: 28, values: (_, splits, __, ___, increment) => splits.map((split) => formatTick(split, increment)) },
      { ...axis, grid: { stroke: color("line"), width: 1 }, size: 64, values: (_, splits) => splits.map((split) => formatAxisValue(series[0].format, split)) },
    ],
    series: [{}, ...series.map((one) => createSeries(one, color(one.color)))],
    plugins: [createTooltip(series)],
  };
}

function createSeries({ kind, dashed }, color) {
  if (kind === "bars") return { stroke: color, fill: color, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 32], radius: 0.15 }) };
  return { stroke: color, width: 2, dash: dashed ? [5, 4] : undefined, points: { size: 5, fill: color } };
}

// A canvas needs a colour of the current theme: `light-dark()` is resolved by an element that uses it.
function resolveColor(parent, name) {
  const probe = create("span");
  probe.style.color = `var(--${name})`;
  parent.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function formatTick(seconds, increment) {
  const date = new Date(seconds * 1000);
  const isDay = increment >= DAY_SECONDS || (date.getHours() === 0 && date.getMinutes() === 0);
  return isDay
    ? date.toLocaleDateString(language(), { month: "short", day: "numeric" })
    : date.toLocaleTimeString(language(), { hour: "2-digit", minute: "2-digit" });
}

const AXIS_FORMATS = { count: "compact", usd: "usd_axis" };
const formatAxisValue = (format, value) => formatValue(AXIS_FORMATS[format] ?? format, value);

// The values of the bucket under the pointer.
function createTooltip(series) {
  const tooltip = create("div", { className: "tooltip", hidden: true });
  return {
    hooks: {
      init: (plot) => {
        plot.over.append(tooltip);
        plot.over.addEventListener("pointerleave", () => (tooltip.hidden = true));
      },
      setCursor: (plot) => {
        const { idx, left } = plot.cursor;
        tooltip.hidden = idx === null || idx === undefined || left < 0;
        if (tooltip.hidden) return;
        const time = create("strong", { content: formatValue("minute", plot.data[0][idx] * 1000) });
        const lines = series.map(({ text, format }, n) => create("span", { content: `${words(text)}: ${formatOptional(format, plot.data[n + 1][idx])}` }));
        tooltip.replaceChildren(time, ...lines);
        const isRight = left > plot.over.clientWidth / 2;
        tooltip.style.left = isRight ? "" : `${left + 12}px`;
        tooltip.style.right = isRight ? `${plot.over.clientWidth - left + 12}px` : "";
      },
    },
  };
}

const formatOptional = (format, value) => (value === null || value === undefined ? "–" : formatValue(format, value));
