// The entries of a ledger: what was added to a balance and taken from it, newest first.

import { resolveUrl } from "../root.js";
import { fetchJson } from "../service.js";
import { create, createButton, createPill, createTiles, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createTable } from "./table.js";
import "./ledger_text.js";

const TONES = { top_up: "good", grant: "good", refund: "warn", dispute: "warn" };

/** The account of a user, or of this one: `GET /billing`. */
export const fetchAccount = ({ user = null, cursor = null } = {}) => fetchJson(`billing?${new URLSearchParams({ ...(user === null ? {} : { user_id: user }), ...(cursor ? { cursor } : {}) })}`);

/** The entries of an account with a button for further ones. `user` null: this user. */
export class EntryList {
  constructor(user = null) {
    this.user = user;
    this.log = user === null ? "account/log" : "admin/log";
    this.table = createTable({ columns: this.listColumns(), caption: "entries", empty: { text: "entries_none", hint: "entries_none_hint" } });
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.more = createButton("entries_more", () => this.loadMore(), { hidden: true });
    this.element = create("div", { className: "entries" }, this.table.element, this.problem, create("p", { className: "more-rows" }, this.more));
  }

  listColumns() {
    return [
      { key: "created_at", text: "entries_time", format: "time" },
      { key: "kind", text: "entries_kind", cell: ({ kind }) => createPill(`entry_${kind}`, TONES[kind] ?? "plain") },
      { key: "note", text: "entries_note", cell: ({ note, answer_id: id }) => (id
        ? create("a", { text: "entries_answer", href: resolveUrl(`${this.log}?${new URLSearchParams({ id })}`) }) : note ?? "–") },
      { key: "amount", text: "entries_amount", format: "usd_signed" },
    ];
  }

  /** Shows the first page of an account. */
  show({ entries, next_cursor: cursor }) {
    this.rows = entries;
    this.showRows(cursor);
    showProblem(this.problem, null);
  }

  async loadMore() {
    this.more.disabled = true;
    const rows = this.rows;
    try {
      const { entries, next_cursor: cursor } = await fetchAccount({ user: this.user, cursor: this.cursor });
      if (rows === this.rows) { // otherwise the first page was shown again meanwhile
        rows.push(...entries);
        this.showRows(cursor);
      }
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
    this.more.disabled = false;
  }

  showRows(cursor) {
    this.cursor = cursor;
    this.table.setRows(this.rows);
    this.more.hidden = cursor === null;
  }
}

/** The balance of an account, what of it is held, and what is available. */
export function createBalance(account) {
  return createTiles(["available", "balance", "held"].map((name) => ({
    text: `balance_${name}`,
    value: createValue("usd", account[name]),
    note: name === "held" ? create("span", { text: "balance_held_note" }) : createExact(account[name]),
  })));
}

// All digits of an amount that the figure above rounds.
const createExact = (amount) => (/\.\d{3}/.test(amount) ? createValue("usd_exact", amount) : null);
