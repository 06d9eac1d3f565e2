// Invoices at Stripe.

import { language } from "../text.js";
import { create, createPanel, createPill } from "./elements.js";
import { createTable } from "./table.js";

const TONES = { paid: "good", open: "warn", uncollectible: "bad" };
const STATES = ["draft", "open", "paid", "uncollectible", "void"];

/** The panel of the invoices of an account; nothing without any. */
export function createInvoices({ invoices, invoices_error: error }) {
  if (error) return [createPanel("invoices", [create("p", { className: "note problem", text: "invoices_failed" })])];
  if (!invoices?.length) return [];
  const table = createTable({ columns: COLUMNS, caption: "invoices", empty: { text: "invoices_none" } });
  table.setRows(invoices.map((invoice) => ({ ...invoice, created: new Date(invoice.created * 1000).toISOString() })));
  return [createPanel("invoices", [table.element])];
}

const COLUMNS = [
  { key: "number", text: "invoices_number", cell: ({ number, id }) => create("span", { className: "identifier", content: number ?? id }) },
  { key: "created", text: "invoices_date", format: "day" },
  { key: "status", text: "invoices_state", cell: ({ status }) => (STATES.includes(status) ? createPill(`invoice_${status}`, TONES[status] ?? "plain") : status ?? "–") },
  { key: "total", text: "invoices_total", numeric: true, cell: ({ total, currency }) => formatAmount(total, currency) },
  { key: "links", text: "invoices_links", cell: createLinks },
];

// Stripe has amounts in the smallest unit of the currency.
function formatAmount(amount, currency) {
  const format = new Intl.NumberFormat(language(), { style: "currency", currency, currencyDisplay: "narrowSymbol" });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

function createLinks({ hosted_invoice_url: page, invoice_pdf: pdf }) {
  const links = [["invoices_open", page], ["invoices_pdf", pdf]].filter(([, url]) => isWebAddress(url));
  if (links.length === 0) return "–";
  return create("span", { className: "links" }, ...links.map(([text, href]) => create("a", { text, href, rel: "noreferrer", target: "_blank" })));
}

const isWebAddress = (url) => /^https?:\/\//.test(url ?? "");
