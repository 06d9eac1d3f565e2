// My account: limits, usage and keys of the user of this session.

import { fetchJson } from "../service.js";
import { fetchAnalytics } from "./analytics.js";
import { createChart } from "./chart.js";
import { create, createButton, createPanel, createTiles, showProblem } from "./elements.js";
import { createValue, formatRelative, formatValue } from "./format.js";
import { createKey, createKeys } from "./keys.js";
import { bucketLength, computeInterval, listBuckets, timezone } from "./periods.js";
import { openPage } from "./shell.js";
import { createBar } from "./table.js";
import "./account_text.js";
import "./people_text.js"; // names of limits, and for keys.js

const METRICS = ["answers", "errors", "total_tokens", "cost"];
const HIGH = 0.75; // share of a limit from which its bar changes its colour
const FULL = 0.95;

openPage("account", async (main, session) => {
  main.append(create("p", { className: "lead", text: "account_lead" }));
  const sections = [() => createLimits(), () => createUsage(session.user_id), () => createMyKeys(session)];
  for (const createSection of sections) {
    try {
      main.append(await createSection());
    } catch (problem) {
      main.append(create("section", { className: "panel" }, showProblem(create("p", { className: "note" }), problem)));
    }
  }
});

async function createLimits() {
  const { limits } = await fetchJson("ai/usage");
  if (limits.length === 0) return createPanel("account_limits", [create("p", { className: "note", text: "account_no_limits" })]);
  return createPanel("account_limits", [create("ul", { className: "limits" }, ...limits.map(createLimit))]);
}

function createLimit({ name, of, limit, used, held, reset_seconds: seconds }) {
  const format = (amount) => formatValue(name.includes("usd") ? "usd" : "count", amount);
  const share = Number(limit) ? (Number(used) + Number(held)) / Number(limit) : 1;
  const values = { used: format(used), limit: format(limit) };
  const notes = [create("span", { text: of.startsWith("key") ? "account_of_key" : "account_of_user" })];
  if (Number(held)) notes.push(create("span", { text: "account_held", values: { held: format(held) } }));
  if (seconds) notes.push(create("span", { text: "account_reset", values: { time: formatRelative(Date.now() + seconds * 1000) } }));
  return create("li", {},
    create("p", { className: "row-between" }, create("strong", { text: `limit_name_${name}` }), create("span", { text: "account_limit_value", values })),
    createBar(share, "account_limit_value", values, share >= FULL ? "bad" : share >= HIGH ? "warn" : "plain"),
    create("p", { className: "note notes" }, ...notes));
}

async function createUsage(userId) {
  const interval = computeInterval({ period: "30d", bucket: "day" });
  const rows = await fetchAnalytics({ since: new Date(interval.since).toISOString(), until: new Date(interval.until).toISOString(), timezone, bucket: "day", metrics: METRICS, user_id: userId });
  const times = listBuckets(interval);
  const byTime = new Map(rows.map((row) => [Date.parse(row.start_time), row]));
  const values = (name) => times.map((time) => Number(byTime.get(time)?.[name] ?? 0));
  const sum = (name) => values(name).reduce((total, value) => total + value, 0);
  const unknown = sum("unknown_answers") + sum("unpriced_answers");
  const cost = sum("cost");
  const chart = (text, name, format, series) => create("div", {}, create("h3", { text }),
    createChart({ text, times, stepMs: bucketLength("day"), series: [{ text: series, format, kind: "bars", color: "indigo", values: values(name) }] }));
  return createPanel("account_usage", [
    createTiles([
      { text: "account_cost", value: createValue("usd", cost === 0 && unknown ? null : cost), note: unknown ? create("span", { text: "account_unknown", values: { count: unknown } }) : null },
      { text: "account_answers", value: createValue("count", sum("answers")) },
      { text: "account_errors", value: createValue("count", sum("errors")) },
      { text: "account_tokens", value: createValue("compact", sum("total_tokens")) },
    ]),
    create("div", { className: "panels charts" }, chart("account_cost_by", "cost", "usd", "account_cost"), chart("account_answers_by", "answers", "count", "account_answers")),
  ]);
}

async function createMyKeys({ user_id: userId, role }) {
  const all = create("input", { type: "checkbox" });
  const reload = async () => {
    const { items } = await fetchJson(`ai/keys?${new URLSearchParams({ user_id: userId })}`);
    keys.setKeys(items.filter((key) => all.checked || isValid(key)));
  };
  const keys = createKeys(reload);
  all.addEventListener("change", reload);
  await reload();
  const hint = create("p", { className: "note", text: "account_keys_hint" });
  const filter = create("label", { className: "check" }, all, create("span", { text: "account_keys_all" }));
  const button = createButton("keys_new", () => createKey({ user: userId, hasRole: role === "admin", onDone: reload }), { kind: "primary" });
  return createPanel("account_keys", [hint, keys.element, filter], [button]);
}

const isValid = ({ revoked_at: revoked, expires_at: end }) => !revoked && !(end && new Date(end) <= Date.now());
