// People: users with their state, plan and cost of the month, and the plans. A user's details are in the drawer.

import { fetchJson } from "../service.js";
import { say } from "../text.js";
import { fetchAnalytics } from "./analytics.js";
import { create, createButton, createField, createPanel, createPill, setHint, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createKey } from "./keys.js";
import { createLimitsText } from "./limits.js";
import { openPerson } from "./person.js";
import { createPlans } from "./plans.js";
import { openPage } from "./shell.js";
import { createTable } from "./table.js";
import "./people_text.js";

const COSTS_MAX = 1000; // users with the highest cost of the month
const SEARCH_MS = 250; // after the last key
const DEFAULT_PLAN = "default";

openPage("admin/people", async (main) => {
  const people = new People();
  main.append(people.element);
  await people.load();
  const user = new URLSearchParams(location.search).get("user");
  if (user) people.open(user);
});

class People {
  constructor() {
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.note = create("p", { className: "note" });
    this.note.setAttribute("role", "status");
    this.search = create("input", { type: "search", autocomplete: "off", maxLength: 200 });
    setHint(this.search, "people_search_hint");
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), SEARCH_MS);
    });
    this.table = createTable({ columns: COLUMNS, caption: "people_users", empty: { text: "people_none", hint: "people_none_hint" }, onOpen: ({ user_id: id }) => this.open(id) });
    this.more = createButton("log_load_more", () => this.loadMore(), { hidden: true });
    this.plans = createPlans(() => this.load());
    const add = createButton("people_new_key", () => createKey({ onDone: () => this.load() }), { kind: "primary" });
    const users = createPanel("people_users", [
      create("div", { className: "toolbar" }, createField("people_search", this.search)),
      this.problem, this.table.element,
      create("div", { className: "row-between list-foot" }, this.note, this.more),
    ], [add]);
    users.classList.add("people");
    this.element = create("div", {}, users, this.plans.element);
    this.loads = 0;
  }

  open(id) {
    openPerson(id, { plans: this.plans.names, spent: this.costs?.get(id), onChange: () => this.load() });
  }

  async load() {
    const number = ++this.loads;
    try {
      const [costs] = await Promise.all([fetchCosts(), this.plans.load()]);
      const page = await fetchUsers(this.search.value);
      if (number !== this.loads) return;
      this.costs = costs;
      this.users = page.items;
      this.cursor = page.next_cursor;
      showProblem(this.problem, null);
    } catch (failure) {
      if (number === this.loads) showProblem(this.problem, failure);
      return;
    }
    this.show();
  }

  async loadMore() {
    this.more.disabled = true;
    try {
      const page = await fetchUsers(this.search.value, this.cursor);
      this.users.push(...page.items);
      this.cursor = page.next_cursor;
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
    this.more.disabled = false;
    this.show();
  }

  // Users with a JWT have no settings until an admin changes them: they are known from their answers only.
  show() {
    const part = this.search.value.toLowerCase();
    const listed = new Set(this.users.map(({ user_id: id }) => id));
    const isOnPage = (id) => this.cursor === null || id <= this.users.at(-1)?.user_id;
    const others = [...this.costs.keys()].filter((id) => !listed.has(id) && id.toLowerCase().includes(part) && isOnPage(id));
    const rows = [...this.users, ...others.map((id) => ({ user_id: id, disabled: false, plan: null, limits: null }))]
      .map((user) => ({ ...user, answers: 0, cost: "0", ...this.costs.get(user.user_id) }))
      .sort((a, b) => (a.user_id < b.user_id ? -1 : 1));
    this.table.setRows(rows);
    this.more.hidden = this.cursor === null;
    say(this.note, rows.length === 1 ? "people_count_one" : "people_count", { count: rows.length });
  }
}

const fetchUsers = (part, cursor = null) => fetchJson(`ai/users?${new URLSearchParams([...(part.trim() ? [["q", part.trim()]] : []), ...(cursor ? [["cursor", cursor]] : [])])}`);

/** What users have cost since the beginning of this month in UTC, as limits count: user id → { cost, answers }. */
async function fetchCosts() {
  const now = new Date();
  const since = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth())).toISOString();
  const rows = await fetchAnalytics({ metrics: ["cost", "answers"], group_by: "user_id", since, order: "-cost", limit: COSTS_MAX });
  return new Map(rows.map((row) => [row.user_id, row]));
}

const COLUMNS = [
  { key: "user_id", text: "people_user" },
  { key: "disabled", text: "people_state", cell: ({ disabled }) => createPill(disabled ? "people_disabled" : "people_active", disabled ? "bad" : "good") },
  { key: "plan", text: "people_plan", cell: ({ plan, limits }) => (limits ? createLimitsText(limits) : create("span", { content: plan ?? DEFAULT_PLAN })) },
  { key: "answers", text: "people_answers", format: "count" },
  { key: "cost", text: "people_cost", numeric: true, cell: (user) => createCost(user) },
];

/** The cost of the month; answers whose cost is unknown are a line of their own. */
export function createCost({ cost, unpriced_answers: unpriced, unknown_answers: unknown }) {
  const unknownCount = (unpriced ?? 0) + (unknown ?? 0);
  const value = createValue("usd", cost);
  return unknownCount > 0 ? create("span", {}, value, create("br"), create("small", { text: "people_unknown_cost", values: { count: unknownCount } })) : value;
}
