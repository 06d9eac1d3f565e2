// Customers of Stripe: their usage beside their meter events, and the events that wait for a decision.

import { fetchJson, sendJson } from "../service.js";
import { confirmAction, openForm } from "./dialogs.js";
import { create, createButton, createField, createPill } from "./elements.js";
import { formatExactUsd, formatTime } from "./format.js";
import { LoadedPanel } from "./panel.js";
import { named } from "./plans.js";
import { createTable } from "./table.js";

const PAGE = 100; // rows shown at first, and with each further step

export class CustomerPanel extends LoadedPanel {
  constructor() {
    const table = createTable({ columns: listCustomerColumns((row) => this.disconnect(row)), caption: "customers", empty: { text: "customers_none", hint: "customers_none_hint" } });
    const more = createButton("entries_more", () => this.show(this.count + PAGE), { hidden: true });
    const add = createButton("customers_connect", () => this.connect());
    super("customers", [create("p", { className: "note", text: "customers_note" }), table.element, create("p", { className: "more-rows" }, more)], [add]);
    Object.assign(this, { table, more });
  }

  // `status` has everyone with usage in its period; `customers` those who are connected now.
  async fetch() {
    const [{ items }, { customers }] = await Promise.all([fetchJson("billing/customers"), fetchJson("billing/status")]);
    const key = (row) => `${row.stripe_customer_id} ${row.user_id}`;
    const connected = new Set(items.map(key));
    const listed = new Set(customers.map(key));
    this.rows = [...customers, ...items.filter((row) => !listed.has(key(row)))].map((row) => ({ ...row, isConnected: connected.has(key(row)) }));
    this.show(PAGE);
  }

  show(count) {
    this.count = count;
    this.table.setRows(this.rows.slice(0, count));
    this.more.hidden = this.rows.length <= count;
  }

  connect() {
    const user = create("input", { name: "user", required: true, maxLength: 200, autocomplete: "off" });
    const customer = create("input", { name: "customer", required: true, pattern: "cus_[A-Za-z0-9_]{1,200}", autocomplete: "off" });
    openForm({
      title: "customers_connect_title",
      action: "customers_connect",
      fields: [create("p", { text: "customers_connect_detail" }), createField("billing_user", user), createField("customers_id", customer, "customers_id_hint")],
      submit: async () => {
        await sendJson("PUT", `billing/customers/${encodeURIComponent(user.value.trim())}`, { stripe_customer_id: customer.value });
        await this.load();
      },
    });
  }

  async disconnect({ user_id: user, stripe_customer_id: id }) {
    const isConfirmed = await confirmAction({ title: "customers_disconnect_title", detail: "customers_disconnect_detail", action: "customers_disconnect", values: { user, id } });
    if (isConfirmed) await this.attempt(async () => {
      await sendJson("DELETE", `billing/customers/${encodeURIComponent(user)}`);
      await this.fetch();
    });
  }
}

function listCustomerColumns(onDisconnect) {
  return [
    { key: "user_id", text: "billing_user" },
    { key: "stripe_customer_id", text: "customers_id", cell: ({ stripe_customer_id: id }) => create("span", { className: "identifier", content: id }) },
    { key: "usage_usd", text: "customers_usage", format: "usd_exact" },
    { key: "delivered_usd", text: "customers_delivered", format: "usd_exact" },
    { key: "waiting", text: "customers_waiting", numeric: true, cell: createWaiting },
    { key: "unpriced", text: "customers_unpriced", format: "count" },
    { key: "actions", text: "actions_column", numeric: true, cell: (row) => (row.isConnected ? create("span", { className: "actions" },
      named(createButton("customers_disconnect", () => onDisconnect(row), { kind: "danger" }), row.user_id)) : create("span", { className: "soft", text: "customers_ended" })) },
  ];
}

// What of the usage is not delivered, by reason; nothing is the usual case.
function createWaiting(row) {
  const parts = ["open", "pending", "review", "billed"].map((name) => [name, row[`${name}_usd`]]).filter(([, amount]) => amount && Number(amount) !== 0);
  if (parts.length === 0) return "–";
  return create("ul", { className: "lines" }, ...parts.map(([name, amount]) => create("li", { text: `customers_${name}`, values: { amount: formatExactUsd(amount) } })));
}

export class ReviewPanel extends LoadedPanel {
  /** `onChange()` is called after a decision. */
  constructor(onChange) {
    const table = createTable({ columns: listEventColumns((event, decision) => this.decide(event, decision)), caption: "events", empty: { text: "events_none", hint: "events_none_hint" } });
    super("events", [table.element]);
    Object.assign(this, { table, onChange });
  }

  async fetch() {
    const { items } = await fetchJson("billing/events?state=review");
    this.table.setRows(items);
  }

  async decide(event, decision) {
    const values = { user: event.user_id, hour: formatTime(event.hour), amount: formatExactUsd(event.usd) };
    const isConfirmed = await confirmAction({ title: `events_${decision}_title`, detail: `events_${decision}_detail`, action: `events_${decision}`, values, danger: false });
    if (isConfirmed) await this.attempt(async () => {
      await sendJson("POST", `billing/events/${encodeURIComponent(event.id)}/resolve`, { decision });
      await Promise.all([this.fetch(), this.onChange()]);
    });
  }
}

function listEventColumns(onDecision) {
  const decide = (event, decision) => named(createButton(`events_${decision}`, () => onDecision(event, decision)), event.id);
  return [
    { key: "hour", text: "events_hour", format: "time" },
    { key: "user_id", text: "billing_user", cell: ({ user_id: user, id }) => create("span", {}, user, create("br"), create("small", { className: "identifier soft", content: id })) },
    { key: "usd", text: "entries_amount", format: "usd_exact" },
    { key: "error", text: "events_reason" },
    { key: "actions", text: "actions_column", numeric: true, cell: (event) => create("span", { className: "actions" }, decide(event, "billed"), decide(event, "send")) },
  ];
}
