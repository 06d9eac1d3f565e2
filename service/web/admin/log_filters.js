// The filters of the log: a form whose state is the query of the page's address, with the parameters of GET /ai/logs.

import { fetchJson } from "../service.js";
import { create, createButton, createField, createSelect, setHint } from "./elements.js";

const STATUSES = ["completed", "no_context", "stopped", "client_gone", "provider_error", "timeout", "interrupted"];
const ENDPOINTS = ["/ai/test", "/ai/stream", "/ai/answers", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/mcp", "rewriting"];
const PERIODS = ["-1h", "-24h", "-7d", "-30d"];
const ORDERED_SINCE = "-24h"; // an order needs an interval
const DAY_MS = 86_400_000; // the first interval that is offered
const NAMES = ["q", "user_id", "status", "since", "until", "model", "endpoint", "min_response_time_ms", "order"];
const LISTS = ["user_id", "model"]; // several values, separated by commas
const MORE = ["model", "endpoint", "min_response_time_ms", "order"];

/** The filters in the address of the page; other parameters are left out. */
export function readFilters() {
  const query = new URLSearchParams(location.search);
  return new URLSearchParams([...query].filter(([name, value]) => NAMES.includes(name) && value));
}

/**
 * Creates the form; `onChange(filters)` is called with the new filters. `isOwn`: without the field for users. Returns
 * { element, setFilters(filters) }.
 */
export function createFilters(onChange, { isOwn = false } = {}) {
  const form = create("form", { className: "toolbar log-filters" });
  form.setAttribute("role", "search");
  const from = create("input", { type: "datetime-local", name: "from" });
  const to = create("input", { type: "datetime-local", name: "to" });
  const custom = [createField("log_from", from), createField("log_to", to)];
  const more = create("details", { className: "more-filters" }, create("summary", { text: "log_more" }), create("div", { className: "toolbar" },
    createField("log_model", createInput("model", { hint: "log_several", list: "models" })),
    createField("log_endpoint", createOptions("endpoint", [["", "log_any"], ...ENDPOINTS.map((path) => [path, null])])),
    createField("log_min_ms", createInput("min_response_time_ms", { type: "number", min: 0, step: 1 })),
    createField("log_order", createOptions("order", [["", "log_newest"], ["-response_time_ms", "log_slowest"], ["-estimated_cost", "log_most_expensive"], ["-total_tokens", "log_most_tokens"]])),
    createModels()));
  form.append(
    createField("log_words", createInput("q", { type: "search", hint: "log_words_hint", maxLength: 200 })),
    ...(isOwn ? [] : [createField("log_users", createInput("user_id", { hint: "log_several" }))]),
    createField("log_status", createOptions("status", [["", "log_any"], ["error", "log_failures"], ...STATUSES.map((status) => [status, `status_${status}`])])),
    createField("log_period", createOptions("period", [["", "log_all_time"], ...PERIODS.map((period) => [period, `log_period_${period.slice(1)}`]), ["custom", "log_custom"]])),
    ...custom,
    createButton("log_reset", () => apply(new URLSearchParams()), { className: "quiet" }),
    more);

  const showCustom = () => custom.forEach((field) => (field.hidden = form.elements.period.value !== "custom"));
  const setFilters = (filters) => {
    fillForm(form, filters);
    showCustom();
    if (MORE.some((name) => filters.has(name))) more.open = true;
  };
  const apply = (filters) => {
    setFilters(filters);
    onChange(filters);
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => {
    if (form.elements.period.value === "custom" && !from.value && !to.value) from.value = toLocal(Date.now() - DAY_MS);
    if (form.reportValidity()) apply(readForm(form));
  });
  return { element: form, setFilters };
}

function createInput(name, { hint = null, list = null, ...options } = {}) {
  const input = create("input", { type: "text", name, autocomplete: "off", ...options });
  if (list) input.setAttribute("list", list);
  if (hint) setHint(input, hint);
  return input;
}

function createOptions(name, options) {
  const select = createSelect(options.filter(([, key]) => key), "", null);
  for (const [value, key] of options) if (!key) select.append(create("option", { value, content: value }));
  select.name = name;
  return select;
}

// Suggestions only: rows may have models that are no longer configured.
function createModels() {
  const list = create("datalist", { id: "models" });
  fetchJson("v1/models").then(({ data }) => list.append(...data.map(({ id }) => create("option", { value: id }))), () => {});
  return list;
}

function readForm(form) {
  const filters = new URLSearchParams();
  const { period, from, to } = form.elements;
  for (const name of NAMES) {
    const text = form.elements[name]?.value.trim() ?? "";
    const values = LISTS.includes(name) ? text.split(",").map((value) => value.trim()) : [text];
    for (const value of values.filter(Boolean)) filters.append(name, value);
  }
  if (period.value === "custom") {
    if (from.value) filters.set("since", new Date(from.value).toISOString());
    if (to.value) filters.set("until", new Date(to.value).toISOString());
  } else if (period.value) filters.set("since", period.value);
  if (filters.has("order") && !filters.has("since")) filters.set("since", ORDERED_SINCE);
  return filters;
}

function fillForm(form, filters) {
  const { period, from, to } = form.elements;
  for (const name of NAMES) {
    const control = form.elements[name];
    if (control) control.value = filters.getAll(name).join(", ");
  }
  const [since, until] = [filters.get("since") ?? "", filters.get("until") ?? ""];
  const isListed = !until && (since === "" || PERIODS.includes(since));
  period.value = isListed ? since : "custom";
  from.value = isListed ? "" : toLocal(since);
  to.value = isListed ? "" : toLocal(until);
}

// The value of a `datetime-local` field, in the time zone of this browser.
function toLocal(moment) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
