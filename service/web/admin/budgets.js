// Budgets: amounts per day or month with what is spent of them, and the alerts about them.

import { fetchJson, sendJson } from "../service.js";
import { confirmAction, openForm } from "./dialogs.js";
import { create, createButton, createField, createPanel, createPill, createSelect, showProblem } from "./elements.js";
import { createValue, formatUsd } from "./format.js";
import { named } from "./plans.js";
import { openPage } from "./shell.js";
import { createBar, createTable } from "./table.js";
import "./budgets_text.js";
import "./people_text.js"; // names of actions

const NAME_PATTERN = "[A-Za-z0-9._\\-]{1,50}";
const THRESHOLDS_PATTERN = "\\s*[0-9]{1,4}(\\s*,\\s*[0-9]{1,4}){0,9}\\s*";
const KINDS = ["all", "user", "key", "plan", "model"];
const HIGH = 80; // percent from which a bar changes its colour
const FULL = 100;
const TONES = { delivered: "good", failed: "bad", pending: "warn", unsent: "plain" };

openPage("admin/budgets", async (main) => {
  const page = new BudgetPage();
  main.append(create("p", { className: "lead", text: "budgets_lead" }), page.problem, page.budgets, page.alerts);
  await page.load();
});

class BudgetPage {
  constructor() {
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.budgetTable = createTable({ columns: this.listBudgetColumns(), caption: "budgets", empty: { text: "budgets_none", hint: "budgets_none_hint" } });
    this.alertTable = createTable({ columns: this.listAlertColumns(), caption: "alerts", empty: { text: "alerts_none", hint: "alerts_none_hint" } });
    const button = createButton("budgets_new", () => this.edit(null), { kind: "primary" });
    this.budgets = createPanel("budgets", [this.budgetTable.element], [button]);
    this.alerts = createPanel("alerts", [this.alertTable.element]);
  }

  listBudgetColumns() {
    return [
      { key: "name", text: "budgets_name" },
      { key: "subject", text: "budgets_subject", cell: ({ subject }) => createSubject(subject) },
      { key: "used", text: "budgets_spent", cell: createSpend },
      { key: "thresholds", text: "budgets_thresholds", cell: ({ thresholds }) => thresholds.map((at) => `${at} %`).join(", ") },
      { key: "action", text: "budgets_action", cell: ({ action }) => createPill(`budgets_${action}`, action === "refuse" ? "warn" : "plain") },
      { key: "actions", text: "actions_column", cell: (budget) => create("span", { className: "actions" },
        named(createButton("change", () => this.edit(budget)), budget.name),
        named(createButton("delete_it", () => this.remove(budget), { kind: "danger" }), budget.name)) },
    ];
  }

  listAlertColumns() {
    return [
      { key: "created_at", text: "alerts_time", format: "time" },
      { key: "budget", text: "alerts_budget", cell: ({ event: { data } }) => data.budget ?? create("span", { text: "alerts_low_credit", values: { user: data.user_id } }) },
      { key: "threshold", text: "alerts_threshold", numeric: true, cell: ({ event, threshold }) => (event.data.budget ? `${threshold} %` : "–") },
      { key: "spent", text: "budgets_spent", cell: ({ event: { data } }) => createAmounts(data.spent_usd ?? data.balance_usd, data.amount_usd) },
      { key: "state", text: "alerts_state", cell: ({ state }) => createPill(`alerts_${state}`, TONES[state]) },
      { key: "attempts", text: "alerts_attempts", format: "count" },
      { key: "error", text: "alerts_error" },
      { key: "actions", text: "actions_column", cell: (alert) => (["pending", "failed"].includes(alert.state)
        ? create("span", { className: "actions" }, named(createButton("alerts_retry", () => this.retry(alert)), alert.event.data.budget ?? alert.event.data.user_id)) : "–") },
    ];
  }

  async load() {
    await this.attempt(async () => {
      const [budgets, alerts] = await Promise.all([fetchJson("ai/budgets"), fetchJson("ai/budget-alerts")]);
      this.budgetTable.setRows(budgets.items);
      this.alertTable.setRows(alerts.items);
    });
  }

  async attempt(action) {
    try {
      await action();
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
  }

  edit(budget) {
    openForm({
      title: budget ? "budgets_change_title" : "budgets_new_title",
      values: { name: budget?.name ?? "" },
      action: "save",
      fields: createFields(budget),
      submit: async (form) => {
        if (budget) await sendJson("PATCH", `ai/budgets/${budget.id}`, readChange(form));
        else await sendJson("POST", "ai/budgets", readBudget(form));
        await this.load();
      },
    });
  }

  async remove({ id, name }) {
    const isConfirmed = await confirmAction({ title: "budgets_delete_title", detail: "budgets_delete_detail", action: "delete_it", values: { name } });
    if (isConfirmed) await this.attempt(async () => {
      await sendJson("DELETE", `ai/budgets/${id}`);
      await this.load();
    });
  }

  retry({ id }) {
    return this.attempt(async () => {
      await sendJson("POST", `ai/budget-alerts/${id}/retry`);
      await this.load();
    });
  }
}

function createSubject(subject) {
  const [kind, ...rest] = subject.split(":");
  return create("span", { text: `budgets_of_${kind}`, values: { target: rest.join(":") } });
}

const createAmounts = (spent, amount) => create("span", {}, createValue("usd", spent), " / ", createValue("usd", amount));

// What is spent of the amount in this window.
function createSpend({ amount_usd: amount, period, current }) {
  const tone = current.percent >= FULL ? "bad" : current.percent >= HIGH ? "warn" : "plain";
  const values = { spent: formatUsd(current.spent_usd), amount: formatUsd(amount), percent: current.percent };
  const notes = [create("span", { text: `budgets_per_${period}`, values: { percent: current.percent } })];
  if (current.unpriced) notes.push(create("span", { text: "budgets_unpriced", values: { count: current.unpriced } }));
  return create("span", { className: "spend" }, createAmounts(current.spent_usd, amount),
    createBar(current.percent / 100, "budgets_bar", values, tone), create("small", { className: "note notes" }, ...notes));
}

function createFields(budget) {
  const amount = create("input", { name: "amount", type: "number", required: true, min: "0.000000001", max: 999999, step: "0.000000001", inputMode: "decimal", value: budget?.amount_usd ?? "" });
  const thresholds = create("input", { name: "thresholds", required: true, pattern: THRESHOLDS_PATTERN, autocomplete: "off", value: (budget?.thresholds ?? [50, 80, 100]).join(", ") });
  const action = Object.assign(createSelect(["alert", "refuse"].map((name) => [name, `budgets_${name}`]), budget?.action ?? "alert"), { name: "action" });
  const fields = [createField("budgets_amount", amount), createField("budgets_thresholds", thresholds, "budgets_thresholds_hint"), createField("budgets_action", action, "budgets_action_hint")];
  return budget ? fields : [...createIdentity(), ...fields];
}

// The fields that cannot be changed later.
function createIdentity() {
  const name = create("input", { name: "budget", required: true, pattern: NAME_PATTERN, autocomplete: "off" });
  const target = create("input", { name: "target", required: true, maxLength: 200, autocomplete: "off", disabled: true });
  const targetField = createField("budgets_target", target, "budgets_target_hint");
  targetField.hidden = true;
  const kind = createSelect(KINDS.map((value) => [value, `budgets_kind_${value}`]), "all", (value) => (targetField.hidden = target.disabled = value === "all"));
  const period = createSelect(["month", "day"].map((value) => [value, `budgets_period_${value}`]), "month");
  Object.assign(kind, { name: "kind" });
  Object.assign(period, { name: "period" });
  return [createField("budgets_name", name, "plans_name_hint"), createField("budgets_kind", kind), targetField, createField("budgets_period", period)];
}

function readChange(form) {
  const { amount, thresholds, action } = form.elements;
  return { amount_usd: amount.value, thresholds: thresholds.value.split(",").map(Number), action: action.value };
}

function readBudget(form) {
  const { budget, kind, target, period } = form.elements;
  const subject = kind.value === "all" ? "all" : `${kind.value}:${target.value.trim()}`;
  return { name: budget.value, subject, period: period.value, ...readChange(form) };
}
