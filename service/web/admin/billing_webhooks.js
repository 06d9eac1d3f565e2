// Events of Stripe that arrived and could not be processed.

import { fetchJson, sendJson } from "../service.js";
import { create, createButton } from "./elements.js";
import { LoadedPanel } from "./panel.js";
import { named } from "./plans.js";
import { createTable } from "./table.js";

export class WebhookPanel extends LoadedPanel {
  constructor() {
    const table = createTable({ columns: listColumns((event) => this.retry(event)), caption: "webhooks", empty: { text: "webhooks_none", hint: "webhooks_none_hint" } });
    super("webhooks", [table.element]);
    this.table = table;
  }

  async fetch() {
    const { items } = await fetchJson("billing/inbox?state=failed");
    this.table.setRows(items);
  }

  retry({ id }) {
    return this.attempt(async () => {
      await sendJson("POST", `billing/inbox/${encodeURIComponent(id)}/retry`);
      await this.fetch();
    });
  }
}

function listColumns(onRetry) {
  return [
    { key: "received_at", text: "webhooks_received", format: "time" },
    { key: "type", text: "webhooks_type", cell: ({ type }) => create("span", { className: "identifier", content: type }) },
    { key: "id", text: "webhooks_id", cell: ({ id }) => create("span", { className: "identifier", content: id }) },
    { key: "attempts", text: "webhooks_attempts", format: "count" },
    { key: "error", text: "webhooks_error" },
    { key: "actions", text: "actions_column", numeric: true, cell: (event) => create("span", { className: "actions" }, named(createButton("webhooks_retry", () => onRetry(event)), event.id)) },
  ];
}
