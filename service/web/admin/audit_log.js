// The audit log: who changed keys, users, plans and data of others, and who read their texts.

import { resolveUrl } from "../root.js";
import { fetchJson } from "../service.js";
import { onLanguage, say, words } from "../text.js";
import { create, createButton, createField, createSelect, setHint, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { describeLimits } from "./limits.js";
import { openPage } from "./shell.js";
import { createTable } from "./table.js";
import "./audit_log_text.js";
import "./log_text.js";

const PAGE = 50;
const ACTIONS = ["key.created", "key.rotated", "key.revoked", "user.disabled", "user.enabled", "user.limited", "user.texts_erased", "plan.changed", "plan.deleted", "budget.created", "budget.changed", "budget.deleted",
  "customer.connected", "customer.disconnected", "payer.assigned", "wallet.credited", "meter_event.resolved", "stripe_event.retried", "conversation.erased", "conversation.read", "answer.read", "log.read", "log.exported", "document.read", "document.searched", "document.changed", "document.deleted"];
const PERIODS = ["-24h", "-7d", "-30d"];
const NAMES = ["actor", "user_id", "action", "since"];
const textKey = (action) => `audit_${action.replaceAll(".", "_")}`;

openPage("admin/audit-log", async (main) => {
  const log = new AuditLog();
  main.append(create("p", { className: "lead", text: "audit_lead" }), log.element);
  await log.load(readFilters());
  addEventListener("popstate", () => log.load(readFilters()));
});

function readFilters() {
  return new URLSearchParams([...new URLSearchParams(location.search)].filter(([name, value]) => NAMES.includes(name) && value));
}

class AuditLog {
  constructor() {
    this.form = this.createForm();
    this.table = createTable({ columns: COLUMNS, caption: "audit_caption", empty: { text: "audit_none" } });
    this.more = createButton("log_load_more", () => this.loadMore(), { hidden: true });
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.note = create("p", { className: "note" });
    this.note.setAttribute("role", "status");
    this.exports = ["csv", "ndjson"].map((format) => create("a", { text: `log_${format}`, download: `kotae-audit-log.${format}` }));
    const links = create("span", { className: "links" }, create("span", { className: "soft", text: "log_export" }), ...this.exports);
    this.element = create("section", { className: "panel audit" }, this.form, create("div", { className: "row-between list-head" }, this.note, links),
      this.problem, this.table.element, create("p", { className: "more-rows" }, this.more));
    this.loads = 0;
  }

  createForm() {
    const input = (name) => {
      const field = create("input", { name, type: "text", autocomplete: "off" });
      setHint(field, "audit_user_hint");
      return field;
    };
    const select = (name, options) => Object.assign(createSelect(options, ""), { name });
    const form = create("form", { className: "toolbar log-filters" },
      createField("audit_actor", input("actor")), createField("audit_user", input("user_id")),
      createField("audit_action", select("action", [["", "log_any"], ...ACTIONS.map((action) => [action, textKey(action)])])),
      createField("log_period", select("since", [["", "log_all_time"], ...PERIODS.map((period) => [period, `log_period_${period.slice(1)}`])])),
      createButton("log_reset", () => this.show(new URLSearchParams())));
    form.setAttribute("role", "search");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => this.show(new URLSearchParams([...new FormData(form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value))));
    return form;
  }

  show(filters) {
    const query = filters.toString();
    history.pushState(null, "", query ? `?${query}` : location.pathname);
    return this.load(filters);
  }

  async load(filters) {
    this.query = filters;
    for (const name of NAMES) this.form.elements[name].value = filters.get(name) ?? "";
    for (const link of this.exports) link.href = resolveUrl(`ai/audit-log?${new URLSearchParams([...filters, ["format", link.download.split(".")[1]]])}`);
    this.rows = [];
    this.cursor = null;
    await this.loadMore();
  }

  async loadMore() {
    const number = ++this.loads;
    try {
      const query = new URLSearchParams([...this.query, ["limit", PAGE], ...(this.cursor ? [["cursor", this.cursor]] : [])]);
      const { items, next_cursor: cursor } = await fetchJson(`ai/audit-log?${query}`);
      if (number !== this.loads) return;
      this.rows.push(...items);
      this.cursor = cursor;
      showProblem(this.problem, null);
    } catch (failure) {
      if (number === this.loads) showProblem(this.problem, failure);
    }
    this.more.hidden = this.cursor === null;
    this.table.setRows(this.rows);
    say(this.note, this.rows.length === 1 ? "audit_count_one" : this.cursor ? "audit_count_more" : "audit_count", { count: this.rows.length });
  }
}

const COLUMNS = [
  { key: "created_at", text: "log_time", format: "time" },
  { key: "actor", text: "audit_actor", cell: ({ actor, credential }) => create("span", {}, create("span", { content: actor }), " ", create("small", { className: "soft", text: `audit_by_${credential}` })) },
  { key: "action", text: "audit_action", cell: ({ action }) => create("span", { text: textKey(action) }) },
  { key: "user_id", text: "audit_user", cell: ({ user_id: id, target_kind: kind }) => (id ? create("a", { content: id, href: resolveUrl(`admin/people?${new URLSearchParams({ user: id })}`) }) : create("span", { className: "soft", text: kind === "plan" ? "audit_no_user" : "audit_everyone" })) },
  { key: "detail", text: "audit_detail", cell: createDetail },
];

// What the action was about, and what changed.
function createDetail(entry) {
  const { target_kind: kind, target_id: id, user_id: user } = entry;
  const target = kind === "answer" ? create("a", { content: id, className: "identifier", href: resolveUrl(`admin/log?${new URLSearchParams({ id })}`) })
    : id && id !== user ? create("span", { className: "identifier", content: id }) : null;
  const change = create("span", { className: "change" });
  change.entry = entry;
  return create("span", { className: "audit-detail" }, ...(target ? [target, " "] : []), fillChange(change));
}

function fillChange(element) {
  element.textContent = describeDetail(element.entry);
  return element;
}

onLanguage(() => document.querySelectorAll(".change").forEach(fillChange));

function describeDetail({ action, detail }) {
  if (action === "user.limited") return `${describeQuota(detail.old)} → ${describeQuota(detail.new)}`;
  if (action === "plan.changed") return detail.old ? `${describeLimits(detail.old)} → ${describeLimits(detail.new)}` : describeLimits(detail.new);
  if (action === "plan.deleted") return describeLimits(detail.old);
  if (action === "key.created") return [words(`role_${detail.role}`), detail.scopes.join(", "), detail.limits ? describeLimits(detail.limits) : ""].filter(Boolean).join(" · ");
  if (action === "key.rotated") return words("audit_replaced_by", { id: detail.replaced_by });
  if (detail.created_by) return words("audit_created_by", { id: detail.created_by });
  if (detail.fields) return detail.fields.join(", ");
  if (detail.old && detail.new) return `${listValues(detail.old)} → ${listValues(detail.new)}`;
  return listValues(detail);
}

// Of budgets: the names and values of the API.
const listValues = (values) => Object.entries(values).map(([name, value]) => `${name}: ${[value].flat().join(", ")}`).join(" · ");

const describeQuota = ({ plan, limits }) => (limits ? describeLimits(limits) : words("people_has_plan", { name: plan ?? "default" }));
