// The balances of users, the entries of one of them in the drawer, and amounts that an admin adds.

import { resolveUrl } from "../root.js";
import { createIdempotencyKey, fetchJson, sendJson } from "../service.js";
import { openDrawer, openForm } from "./dialogs.js";
import { create, createButton, createField, createSelect, setHint, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createBalance, EntryList, fetchAccount } from "./ledger.js";
import { LoadedPanel } from "./panel.js";
import { createTable } from "./table.js";

const COLUMNS = [
  { key: "user_id", text: "billing_user" },
  { key: "updated_at", text: "wallets_changed", format: "relative" },
  { key: "balance", text: "balance_balance", format: "usd_exact" },
];

export class WalletPanel extends LoadedPanel {
  constructor() {
    const open = (id) => openWallet(id, () => this.load());
    const table = createTable({ columns: COLUMNS, caption: "wallets", empty: { text: "wallets_none", hint: "wallets_none_hint" }, onOpen: ({ user_id: id }) => open(id) });
    const more = createButton("entries_more", () => this.loadMore(), { hidden: true });
    const add = createButton("grants_new", () => openGrant({ onDone: () => this.load() }), { kind: "primary" });
    super("wallets", [createSearch(open), table.element, create("p", { className: "more-rows" }, more)], [add]);
    this.element.classList.add("people");
    Object.assign(this, { table, more });
  }

  async fetch() {
    const { items, next_cursor: cursor } = await fetchJson("billing/wallets");
    this.rows = items;
    this.show(cursor);
  }

  loadMore() {
    const rows = this.rows;
    return this.attempt(async () => {
      this.more.disabled = true;
      try {
        const { items, next_cursor: cursor } = await fetchJson(`billing/wallets?${new URLSearchParams({ cursor: this.cursor })}`);
        if (rows !== this.rows) return; // loaded again meanwhile
        rows.push(...items);
        this.show(cursor);
      } finally {
        this.more.disabled = false;
      }
    });
  }

  show(cursor) {
    this.cursor = cursor;
    this.table.setRows(this.rows);
    this.more.hidden = cursor === null;
  }
}

// Opens a user by id: also one who is on a later page, or has no entries.
function createSearch(open) {
  const input = create("input", { type: "search", name: "user", required: true, maxLength: 200, autocomplete: "off" });
  setHint(input, "wallets_find_hint");
  const form = create("form", { className: "toolbar" }, createField("wallets_find", input), create("button", { type: "submit", className: "quiet", text: "wallets_open" }));
  form.setAttribute("role", "search");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    open(input.value.trim());
  });
  return form;
}

/** Opens the wallet of a user in the drawer. `onChange()` is called after a grant. */
export async function openWallet(id, onChange) {
  const problem = create("p", { className: "note", text: "loading" });
  problem.setAttribute("role", "alert");
  const balance = create("div");
  const entries = new EntryList(id);
  const load = async () => {
    try {
      const account = await fetchAccount({ user: id });
      balance.replaceChildren(createBalance(account));
      entries.show(account);
      showProblem(problem, null);
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const add = createButton("grants_new", () => openGrant({ user: id, onDone: () => Promise.all([load(), onChange()]) }));
  const links = create("span", { className: "links" }, create("a", { text: "billing_person", href: resolveUrl(`admin/people?${new URLSearchParams({ user: id })}`) }));
  const drawer = openDrawer({ title: id, children: [
    problem, create("div", { className: "row-between detail-head" }, links, add), balance,
    create("section", { className: "detail" }, create("h3", { text: "entries" }), entries.element)] });
  setAddress(id);
  drawer.addEventListener("close", () => setAddress(null), { once: true });
  await load();
}

function setAddress(id) {
  history.replaceState(null, "", id ? `?${new URLSearchParams({ user: id })}` : location.pathname);
}

/**
 * Opens the form of an amount that is added to a wallet, of a certain user or of one to be entered. The key belongs to the
 * form: however often it is sent, also after a lost response, the amount is added once.
 */
export function openGrant({ user = null, onDone }) {
  const key = createIdempotencyKey();
  const owner = create("input", { name: "user", required: true, maxLength: 200, autocomplete: "off" });
  const amount = create("input", { name: "amount", type: "number", required: true, step: "0.000000001", min: "0.000000001", max: 999_999, inputMode: "decimal", autocomplete: "off" });
  const kind = createSelect([["grant", "grants_kind_grant"], ["adjustment", "grants_kind_adjustment"]], "grant", (value) => (amount.min = value === "grant" ? "0.000000001" : "-999999"));
  kind.name = "kind";
  const note = create("input", { name: "note", maxLength: 500, autocomplete: "off" });
  openForm({
    title: user === null ? "grants_title" : "grants_title_of",
    values: { name: user ?? "" },
    action: "grants_add",
    fields: [
      ...(user === null ? [createField("billing_user", owner, "grants_user_hint")] : []),
      createField("grants_kind", kind, "grants_kind_hint"),
      createField("grants_amount", amount),
      createField("grants_note", note, "grants_note_hint"),
    ],
    submit: async () => {
      const body = { user_id: user ?? owner.value.trim(), kind: kind.value, amount: amount.value, ...(note.value.trim() ? { note: note.value.trim() } : {}) };
      await sendJson("POST", "billing/grants", body, { "Idempotency-Key": key });
      await onDone();
    },
  });
}
