// The overview: cost, tokens, answers, errors and response times of a period, broken down, and checked against the rows.

import { resolveUrl } from "../root.js";
import { fetchAnalytics, fetchCheck, toParameters } from "./analytics.js";
import { createChart } from "./chart.js";
import { create, createButton, createPanel, createPill, createTiles, showProblem } from "./elements.js";
import { createValue, formatCompact, formatPercent, formatTime } from "./format.js";
import { bucketLength, computeInterval, createPeriodControls, createSegments, listBuckets, readPeriod, storePeriod, timezone } from "./periods.js";
import { openPage } from "./shell.js";
import { createBar, createTable } from "./table.js";
import "./overview_text.js";

const GROUPS_MAX = 20;
const CHECKED_MAX = 20_000; // answers up to which rows are summed without being asked: about 0.1 s
const DIMENSIONS = ["model", "user_id", "endpoint", "key_id"];
const METRICS = ["answers", "errors", "prompt_tokens", "completion_tokens", "total_tokens", "cost", "response_time_ms"];
const NONE = { answers: 0, errors: 0, prompt_tokens: 0, completion_tokens: 0, total_tokens: 0, cost: "0", unpriced_answers: 0, unknown_answers: 0, response_time_ms: { p50: null, p95: null } };
const count = (value) => createValue("count", value);

openPage("admin", async (main) => {
  const choice = readPeriod();
  const by = new URLSearchParams(location.search).get("by");
  const state = { by: DIMENSIONS.includes(by) ? by : "model", order: "-cost" };
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const content = create("div", { className: "results" });
  content.setAttribute("aria-busy", true);
  const show = async () => {
    storePeriod(choice, { by: state.by });
    await showPeriod(content, problem, computeInterval(choice), state, () => storePeriod(choice, { by: state.by }));
  };
  const controls = createPeriodControls(choice, show);
  controls.append(create("div", { className: "actions end" }, createButton("overview_refresh", show)));
  main.append(controls, problem, content);
  await show();
});

let shown = 0; // the number of the newest choice: older results are dropped

async function showPeriod(content, problem, interval, state, onState) {
  const number = ++shown;
  const period = { since: toTime(interval.since), until: toTime(interval.until), timezone };
  content.setAttribute("aria-busy", true);
  try {
    const [totals = NONE] = await fetchAnalytics({ ...period, metrics: METRICS });
    const rows = await fetchAnalytics({ ...period, metrics: METRICS, bucket: interval.bucket });
    if (number !== shown) return;
    const breakdown = createBreakdown(period, totals, state, onState);
    const check = createCheck(period, totals.answers);
    content.replaceChildren(createSummary(totals), createCharts(interval, rows), createUnknown(totals), breakdown.element, check.element, createExports(period));
    showProblem(problem, null);
    content.removeAttribute("aria-busy");
    await breakdown.show();
    await check.show();
  } catch (failure) {
    if (number === shown) showProblem(problem, failure);
  }
}

const toTime = (ms) => new Date(ms).toISOString();

// An unknown cost is not 0.
function createCost({ cost, unknown_answers: unknown, unpriced_answers: unpriced }) {
  return createValue("usd", Number(cost) === 0 && unknown + unpriced > 0 ? null : cost);
}

function createSummary(totals) {
  const { answers, errors, total_tokens: tokens, prompt_tokens: prompt, completion_tokens: completion, response_time_ms: times } = totals;
  const note = (text, values = {}) => create("span", { text, values });
  return createTiles([
    { text: "overview_cost", value: createCost(totals), note: note("overview_cost_note") },
    { text: "overview_answers", value: count(answers) },
    { text: "overview_errors", value: count(errors), note: note("overview_errors_note", { share: formatPercent(answers ? errors / answers : 0) }) },
    { text: "overview_tokens", value: createValue("compact", tokens), note: note("overview_tokens_note", { prompt: formatCompact(prompt), completion: formatCompact(completion) }) },
    { text: "overview_p50", value: createValue("ms", times.p50), note: note("overview_percentiles_note") },
    { text: "overview_p95", value: createValue("ms", times.p95), note: note("overview_percentiles_note") },
  ]);
}

function createCharts(interval, rows) {
  const times = listBuckets(interval);
  const byTime = new Map(rows.map((row) => [Date.parse(row.start_time), row]));
  const values = (read) => times.map((time) => read(byTime.get(time) ?? NONE));
  const createSeriesPanel = (text, series) => createPanel(text, [createChart({ text, times, stepMs: bucketLength(interval.bucket), series })]);
  return create("div", { className: "panels charts" },
    createSeriesPanel("overview_cost_by", [{ text: "overview_cost", format: "usd", kind: "bars", color: "indigo", values: values(({ cost }) => Number(cost)) }]),
    createSeriesPanel("overview_answers_by", [
      { text: "overview_answers", format: "count", kind: "bars", color: "indigo", values: values(({ answers }) => answers) },
      { text: "overview_errors", format: "count", kind: "bars", color: "vermilion", values: values(({ errors }) => errors) },
    ]),
    createSeriesPanel("overview_tokens_by", [
      { text: "overview_prompt_tokens", format: "count", kind: "line", color: "indigo", values: values((row) => row.prompt_tokens) },
      { text: "overview_completion_tokens", format: "count", kind: "line", color: "pine", dashed: true, values: values((row) => row.completion_tokens) },
    ]),
    createSeriesPanel("overview_times_by", [
      { text: "overview_p50_short", format: "ms", kind: "line", color: "indigo", values: values((row) => row.response_time_ms.p50) },
      { text: "overview_p95_short", format: "ms", kind: "line", color: "vermilion", dashed: true, values: values((row) => row.response_time_ms.p95) },
    ]));
}

function createUnknown({ unknown_answers: unknown, unpriced_answers: unpriced }) {
  const line = (text, value) => create("li", { className: "row-between" }, create("span", { text }), create("strong", {}, count(value)));
  return createPanel("overview_not_in_cost", [create("ul", { className: "lines" }, line("overview_unknown_line", unknown), line("overview_unpriced_line", unpriced))]);
}

function createBreakdown(period, totals, state, onState) {
  const total = Number(totals.cost);
  const problem = create("p", { className: "note" });
  const holder = create("div");
  const name = (row) => row[state.by] ?? create("span", { text: "overview_no_key" });
  const share = ({ cost }) => {
    const part = total ? Number(cost) / total : 0;
    return createBar(part, "overview_share", { share: formatPercent(part) });
  };
  const createGroups = () => createTable({
    caption: "overview_breakdown",
    empty: { text: "overview_empty", hint: "overview_empty_hint" },
    order: state.order,
    onSort: (order) => {
      state.order = order;
      show();
    },
    columns: [
      { key: "name", text: `overview_by_${state.by}`, cell: name },
      { key: "answers", text: "overview_answers", format: "count", order: "-answers" },
      { key: "errors", text: "overview_errors", format: "count", order: "-errors" },
      { key: "total_tokens", text: "overview_tokens", format: "count", order: "-total_tokens" },
      { key: "p50", text: "overview_p50_short", format: "ms" },
      { key: "p95", text: "overview_p95_short", format: "ms" },
      { key: "unknown_answers", text: "overview_unknown", format: "count" },
      { key: "unpriced_answers", text: "overview_unpriced", format: "count" },
      { key: "cost", text: "overview_cost", numeric: true, order: "-cost", cell: createCost },
      { key: "share", text: "overview_share_heading", hideText: true, cell: share },
    ],
  });
  const show = async () => {
    const query = { by: state.by, order: state.order };
    try {
      const rows = await fetchAnalytics({ ...period, metrics: METRICS, group_by: state.by, order: state.order, limit: GROUPS_MAX });
      if (query.by !== state.by || query.order !== state.order) return; // another choice since
      const table = createGroups();
      table.setRows(rows.map((row) => ({ ...row, ...row.response_time_ms })));
      holder.replaceChildren(table.element);
      showProblem(problem, null);
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const segments = createSegments("overview_breakdown", DIMENSIONS.map((dimension) => [dimension, `overview_by_${dimension}`]), state.by, (dimension) => {
    state.by = dimension;
    onState();
    show();
  });
  const hint = create("p", { className: "note", text: "overview_breakdown_hint", values: { limit: GROUPS_MAX } });
  return { element: createPanel("overview_breakdown", [holder, problem, hint], [segments]), show };
}

function createCheck({ since, until }, answers) {
  const problem = create("p", { className: "note" });
  const holder = create("div");
  const pill = create("span");
  const compare = async () => {
    try {
      const { agrees, rows, sums, ...interval } = await fetchCheck({ since, until });
      pill.replaceChildren(createPill(agrees ? "overview_check_equal" : "overview_check_different", agrees ? "good" : "bad"));
      const table = createTable({
        caption: "overview_check",
        empty: { text: "overview_empty" },
        columns: [
          { key: "source", text: "overview_check_source", cell: ({ source }) => create("span", { text: source }) },
          { key: "answers", text: "overview_answers", format: "count" },
          { key: "errors", text: "overview_errors", format: "count" },
          { key: "prompt_tokens", text: "overview_prompt_tokens", format: "count" },
          { key: "completion_tokens", text: "overview_completion_tokens", format: "count" },
          { key: "cost", text: "overview_cost", format: "usd_exact" },
        ],
      });
      table.setRows([{ source: "overview_check_rows", ...rows }, { source: "overview_check_sums", ...sums }]);
      const values = { from: formatTime(interval.since), to: formatTime(interval.until), unknown: rows.unknown_answers, unpriced: rows.unpriced_answers };
      holder.replaceChildren(table.element, create("p", { className: "note", text: "overview_check_period", values }));
      if (!agrees) showProblem(problem, { key: "overview_check_different_hint" });
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const button = createButton("overview_check_compare", compare);
  const show = () => (answers > CHECKED_MAX ? holder.replaceChildren(create("p", { className: "note", text: "overview_check_many", values: { answers } }), button) : compare());
  const lead = create("p", { className: "note", text: "overview_check_lead" });
  return { element: createPanel("overview_check", [lead, holder, problem], [pill]), show };
}

function createExports(period) {
  const href = resolveUrl(`ai/analytics/focus?${toParameters(period)}`);
  return create("p", { className: "exports" }, create("a", { text: "overview_focus", href, download: "" }));
}
