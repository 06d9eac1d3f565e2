// The log: rows by filter, newest first, with a live tail and the details of a row in the drawer.

import { fetchIfChanged, fetchJson } from "../service.js";
import { resolveUrl } from "../root.js";
import { say } from "../text.js";
import { create, createButton, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createFilters, readFilters } from "./log_filters.js";
import { openAnswer } from "./log_detail.js";
import { createStatus } from "./log_status.js";
import { openPage } from "./shell.js";
import { createTable } from "./table.js";
import "./log_text.js";

const PAGE = 50;
const EMPTY_PAGES_MAX = 20; // requested one after the other: with several filters a page may be empty
const TAIL_MS = 2000;
const TAIL_ROWS = 200;
const ROWS_MAX = 2000; // while following; older ones are removed

const isOwn = location.pathname.endsWith("/account/log"); // only rows of this user, for everyone

openPage(isOwn ? "account/log" : "admin/log", async (main, session) => {
  const log = new Log(isOwn ? session.user_id : null);
  main.append(log.element);
  await log.load(readFilters());
  addEventListener("popstate", () => log.load(readFilters()));
  const id = new URLSearchParams(location.search).get("id");
  if (id) openAnswer(id, { isOwn });
});

class Log {
  constructor(owner) {
    this.owner = owner;
    this.filters = createFilters((filters) => this.show(filters), { isOwn });
    const columns = isOwn ? COLUMNS.filter(({ key }) => key !== "user_id") : COLUMNS;
    this.table = createTable({ columns, caption: "log_caption", empty: { text: "log_none", hint: "log_none_hint" }, onOpen: ({ id }) => openAnswer(id, { isOwn }), onSort: (order) => this.sort(order) });
    this.note = create("p", { className: "note" });
    this.note.setAttribute("role", "status");
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.more = createButton("log_load_more", () => this.loadMore(), { hidden: true });
    this.live = createButton("log_live", () => this.toggleLive());
    this.live.setAttribute("aria-pressed", false);
    this.exports = ["csv", "ndjson"].map((format) => create("a", { className: "export", text: `log_${format}`, download: `kotae-logs.${format}` }));
    const tools = create("div", { className: "actions" }, create("span", { className: "links" }, create("span", { className: "soft", text: "log_export" }), ...this.exports), this.live);
    this.element = create("section", { className: "panel log" }, this.filters.element,
      create("div", { className: "row-between list-head" }, this.note, tools), this.problem, this.table.element, create("p", { className: "more-rows" }, this.more));
    this.rows = [];
    this.loads = 0; // of the last request: responses of earlier ones are dropped
    document.addEventListener("visibilitychange", () => this.follow());
  }

  /** Shows rows with these filters, which become the address of the page. */
  show(filters) {
    const query = filters.toString();
    history.pushState(null, "", query ? `?${query}` : location.pathname);
    return this.load(filters);
  }

  async load(filters) {
    this.filters.setFilters(filters);
    this.query = new URLSearchParams(filters);
    if (this.owner !== null) this.query.set("user_id", this.owner);
    this.table.setOrder(filters.get("order"));
    const isOrdered = filters.has("order");
    for (const link of this.exports) {
      link.hidden = isOrdered;
      link.href = resolveUrl(`ai/logs?${new URLSearchParams([...this.query, ["format", link.download.split(".")[1]]])}`);
    }
    this.live.disabled = isOrdered || filters.has("until");
    if (this.live.disabled) this.setLive(false);
    this.rows = [];
    this.cursor = null;
    await this.loadMore();
  }

  async loadMore() {
    const number = ++this.loads;
    this.more.disabled = true;
    this.isFailed = false;
    say(this.note, "loading");
    try {
      await this.fetchPages(number);
      showProblem(this.problem, null);
    } catch (failure) {
      if (number !== this.loads) return;
      this.more.hidden = true;
      showProblem(this.problem, failure);
      this.isFailed = true;
    }
    if (number !== this.loads) return;
    this.more.disabled = false;
    this.showRows();
  }

  // Until there are rows, as pages with several filters may be empty.
  async fetchPages(number) {
    const before = this.rows.length;
    for (let page = 0; page < EMPTY_PAGES_MAX && this.rows.length === before; page++) {
      const query = new URLSearchParams([...this.query, ["limit", PAGE], ...(this.cursor ? [["cursor", this.cursor]] : [])]);
      const { items, next_cursor: cursor } = await fetchJson(`ai/logs?${query}`);
      if (number !== this.loads) return;
      this.rows.push(...items);
      this.cursor = this.query.has("order") ? null : cursor;
      this.more.hidden = this.cursor === null;
      if (this.cursor === null) return;
    }
  }

  showRows(added = new Set()) {
    this.table.setRows(this.rows.map((row) => ({ ...row, isNew: added.has(row.id) })));
    this.table.element.hidden = this.isFailed && this.rows.length === 0;
    const key = this.cursor ? "log_count_more" : this.rows.length === 1 ? "log_count_one" : "log_count";
    say(this.note, this.live.getAttribute("aria-pressed") === "true" ? "log_following" : key, { count: this.rows.length });
  }

  sort(order) {
    const filters = readFilters();
    if (filters.get("order") === order) filters.delete("order");
    else filters.set("order", order);
    if (filters.has("order") && !filters.has("since")) filters.set("since", "-24h");
    this.show(filters);
  }

  toggleLive() {
    this.setLive(this.live.getAttribute("aria-pressed") !== "true");
    this.showRows();
    this.follow();
  }

  setLive(isLive) {
    this.live.setAttribute("aria-pressed", isLive);
    say(this.live, isLive ? "log_pause" : "log_live");
    if (!isLive) clearTimeout(this.timer);
  }

  // One request at a time, while the page is visible. Without a change the service responds with 304.
  async follow() {
    clearTimeout(this.timer);
    const isLive = () => this.live.getAttribute("aria-pressed") === "true" && !document.hidden;
    if (!isLive() || this.isFetching) return;
    this.isFetching = true;
    try {
      await this.fetchNew();
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
    this.isFetching = false;
    if (isLive()) this.timer = setTimeout(() => this.follow(), TAIL_MS);
  }

  async fetchNew() {
    const number = this.loads;
    const after = this.rows.length > 0 ? (this.tail?.number === number ? this.tail.cursor : this.rows[0].id) : null;
    const query = new URLSearchParams([...this.query, ["limit", after ? TAIL_ROWS : PAGE], ...(after ? [["after", after]] : [])]);
    const known = this.tail?.path === `${query}` ? this.tail.etag : null;
    const response = await fetchIfChanged(`ai/logs?${query}`, known);
    if (number !== this.loads || response === null) return;
    const { items, next_cursor: cursor } = response.body;
    this.tail = { number, path: `${query}`, etag: response.etag, cursor: after ? cursor : items[0]?.id };
    const present = new Set(this.rows.map(({ id }) => id));
    const added = items.filter(({ id }) => !present.has(id));
    if (added.length === 0) return;
    this.rows = [...this.rows, ...added].sort((a, b) => (a.id < b.id ? 1 : -1)).slice(0, ROWS_MAX);
    this.showRows(new Set(added.map(({ id }) => id)));
  }
}

const COLUMNS = [
  { key: "created_at", text: "log_time", cell: (row) => markNew(createValue("time", row.created_at), row) },
  { key: "user_id", text: "log_user" },
  { key: "status", text: "log_status", cell: ({ status }) => (status ? createStatus(status) : create("span", { text: "log_damaged" })) },
  { key: "model", text: "log_model", cell: ({ model }) => create("span", { className: "identifier", content: model ?? "–" }) },
  { key: "total_tokens", text: "log_tokens", format: "count", order: "-total_tokens" },
  { key: "estimated_cost", text: "log_cost", format: "usd", order: "-estimated_cost" },
  { key: "response_time_ms", text: "log_duration", format: "ms", order: "-response_time_ms" },
  { key: "prompt", text: "log_prompt", cell: ({ prompt, erased_at: erased }) => (erased ? create("span", { className: "soft", text: "log_erased" }) : create("span", { className: "excerpt", content: prompt })) },
];

function markNew(element, { isNew }) {
  element.classList.toggle("new-row", isNew);
  return element;
}
