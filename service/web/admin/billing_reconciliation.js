// The comparison of the usage of customers with what Stripe has, hour by hour.

import { fetchJson } from "../service.js";
import { create, createButton, createPill, createTiles, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { LoadedPanel } from "./panel.js";
import { createTable } from "./table.js";

const CAUSES = ["pending", "review", "decided", "recent", "open", "lacking", "excess", "rollups", "no_customer"];
const SHOWN_MAX = 200; // differences

export class ReconciliationPanel extends LoadedPanel {
  constructor() {
    const result = create("div", { className: "results" });
    const button = createButton("reconcile_run", () => this.run());
    super("reconcile", [create("p", { className: "note", text: "reconcile_note" }), result], [button]);
    Object.assign(this, { result, button });
  }

  // The comparison calls Stripe for each customer, so it runs when it is asked for.
  async fetch() {}

  async run() {
    this.button.disabled = true;
    showProblem(this.problem, null);
    this.result.replaceChildren(create("p", { className: "note", text: "reconcile_running" }));
    await this.attempt(async () => {
      try {
        this.result.replaceChildren(...createResult(await fetchJson("billing/reconciliation")));
      } catch (failure) {
        this.result.replaceChildren();
        throw failure;
      }
    });
    this.button.disabled = false;
  }
}

function createResult(report) {
  const count = report.explained + report.unexplained;
  const state = report.unexplained ? createPill("reconcile_differs", "bad", { count: report.unexplained }) : createPill("reconcile_equal", "good");
  const table = createTable({ columns: COLUMNS, caption: "reconcile_differences", empty: { text: "reconcile_none" } });
  table.setRows(report.differences.slice(0, SHOWN_MAX));
  const omitted = count - Math.min(report.differences.length, SHOWN_MAX);
  return [
    createTiles([
      { text: "reconcile_state", value: create("span", { className: "short" }, state), note: create("span", { text: "reconcile_of", values: { customers: report.customers, total: report.customers_total, hours: report.hours } }) },
      { text: "reconcile_usage", value: createAmount(report.usage_usd) },
      { text: "reconcile_stripe", value: createAmount(report.stripe_usd) },
      { text: "reconcile_unpriced", value: createValue("count", report.unpriced) },
      { text: "reconcile_explained", value: createValue("count", report.explained) },
    ]),
    table.element,
    ...(omitted > 0 ? [create("p", { className: "note", text: "reconcile_omitted", values: { count: omitted } })] : []),
    create("p", { className: "note" }, create("span", { text: "reconcile_period" }), " ", createValue("time", report.since), " – ", createValue("time", report.until)),
  ];
}

const createAmount = (amount) => create("span", { className: "short" }, createValue("usd_exact", amount));

const COLUMNS = [
  { key: "stripe_customer_id", text: "customers_id", cell: ({ stripe_customer_id: id }) => create("span", { className: "identifier", content: id }) },
  { key: "hour", text: "events_hour", format: "time" },
  { key: "cause", text: "reconcile_cause", cell: ({ cause, is_explained: isExplained }) => createPill(CAUSES.includes(cause) ? `cause_${cause}` : "cause_other", isExplained ? "plain" : "bad", { cause }) },
  { key: "usd", text: "entries_amount", format: "usd_exact" },
  { key: "detail", text: "entries_note" },
];
