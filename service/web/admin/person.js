// A user in the drawer: usage, plan and limits, keys, recent answers, and what cannot be undone.

import { resolveUrl } from "../root.js";
import { fetchJson, sendJson } from "../service.js";
import { confirmAction, openDrawer, openForm } from "./dialogs.js";
import { create, createButton, createField, createPill, createTiles, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createKey, createKeys } from "./keys.js";
import { createLimitFields, createLimitsText, readLimits } from "./limits.js";
import { createStatus } from "./log_status.js";
import { createBar, createTable } from "./table.js";

const RECENT = 5;
const OWN_LIMITS = "\0"; // no plan has this name
const RECENT_FIELDS = "id,created_at,status,model,estimated_cost"; // without texts: not a read of them

/** Opens a user. `plans`: names of the plans; `spent`: answers and cost of the month; `onChange()` after a change. */
export async function openPerson(id, { plans, spent, onChange }) {
  const problem = create("p", { className: "note", text: "loading" });
  problem.setAttribute("role", "alert");
  const drawer = openDrawer({ title: id, children: [problem] });
  setAddress(id);
  drawer.addEventListener("close", () => setAddress(null), { once: true });
  const path = `ai/users/${encodeURIComponent(id)}`;
  const reload = async () => {
    const user = encodeURIComponent(id);
    const [quota, usage, keys, recent] = await Promise.all([
      fetchJson(`${path}/quota`), fetchJson(`ai/usage?user_id=${user}`), fetchJson(`ai/keys?user_id=${user}`),
      fetchJson(`ai/logs?user_id=${user}&limit=${RECENT}&fields=${RECENT_FIELDS}`),
    ]);
    show({ id, path, quota, usage, keys: keys.items, recent: recent.items, plans, spent, reload: async () => {
      await onChange();
      await reload();
    } });
  };
  try {
    await reload();
  } catch (failure) {
    showProblem(problem, failure);
  }
}

function setAddress(id) {
  history.replaceState(null, "", id ? `?${new URLSearchParams({ user: id })}` : location.pathname);
}

function show(person) {
  const keys = createKeys(person.reload);
  keys.setKeys(person.keys);
  const body = document.querySelector("#drawer .body");
  body.replaceChildren(
    createHead(person),
    createSpent(person.spent),
    createLimits(person),
    createSection("keys", [createButton("keys_new", () => createKey({ user: person.id, onDone: person.reload }))], keys.element),
    createRecent(person),
    createErasure(person));
}

function createSection(text, tools, ...children) {
  return create("section", { className: "detail" }, create("div", { className: "row-between" }, create("h3", { text }), ...tools), ...children);
}

function createHead({ id, path, quota, reload }) {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const set = async (disabled) => {
    const isConfirmed = !disabled || await confirmAction({ title: "people_disable_title", detail: "people_disable_detail", action: "people_disable", values: { name: id } });
    if (!isConfirmed) return;
    try {
      await sendJson("PUT", path, { disabled });
      await reload();
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const button = quota.disabled ? createButton("people_enable", () => set(false)) : createButton("people_disable", () => set(true), { kind: "danger" });
  const pill = createPill(quota.disabled ? "people_disabled" : "people_active", quota.disabled ? "bad" : "good");
  return create("div", { className: "person-head" }, create("div", { className: "row-between" }, pill, button), problem);
}

function createSpent(spent = { cost: "0", answers: 0 }) {
  return createTiles([
    { text: "people_cost", value: createValue("usd", spent.cost) },
    { text: "people_answers", value: createValue("count", spent.answers) },
  ]);
}

function createLimits({ id, path, quota, usage, plans, reload }) {
  const summary = quota.limits ? create("p", {}, create("strong", { text: "people_own_limits" }), " ", createLimitsText(quota.limits))
    : create("p", {}, create("strong", { text: "people_has_plan", values: { name: quota.plan ?? "default" } }), " ", createLimitsText(quota.in_force));
  const lines = usage.limits.filter(({ of }) => of === "user").map(({ name, used, limit }) => {
    const format = name.includes("usd") ? "usd" : "count";
    const line = create("p", { className: "row-between progress-line" }, create("span", { text: `limit_name_${name}` }), create("span", {}, createValue(format, used), " / ", createValue(format, limit)));
    return create("div", { className: "usage-line" }, line, createBar(Number(limit) ? Math.min(1, Number(used) / Number(limit)) : 1, "people_used", { used, limit }));
  });
  return createSection("people_limits", [createButton("change", () => changeLimits({ id, path, quota, plans, reload }))], summary, ...lines);
}

function changeLimits({ id, path, quota, plans, reload }) {
  const fields = createLimitFields(quota.limits ?? {});
  const plan = create("select", { className: "control", name: "plan" },
    create("option", { text: "people_default_plan", value: "" }),
    ...plans.filter((name) => name !== "default").map((name) => create("option", { content: name, value: name })),
    create("option", { text: "people_own_limits", value: OWN_LIMITS }));
  plan.value = quota.limits ? OWN_LIMITS : quota.plan ?? "";
  const showFields = () => (fields.hidden = plan.value !== OWN_LIMITS);
  plan.addEventListener("change", showFields);
  showFields();
  openForm({
    title: "people_limits_title",
    values: { name: id },
    action: "save",
    fields: [createField("people_plan", plan), fields],
    submit: async (form) => {
      const body = plan.value === OWN_LIMITS ? { limits: readLimits(form) } : { plan: plan.value || null };
      await sendJson("PUT", `${path}/quota`, body);
      await reload();
    },
  });
}

function createRecent({ id, recent }) {
  const address = (page, query) => resolveUrl(`${page}?${new URLSearchParams(query)}`);
  const table = createTable({
    caption: "people_recent",
    empty: { text: "people_no_answers" },
    columns: [
      { key: "created_at", text: "log_time", cell: (row) => create("a", { href: address("admin/log", { user_id: id, id: row.id }) }, createValue("time", row.created_at)) },
      { key: "status", text: "log_status", cell: ({ status }) => createStatus(status) },
      { key: "model", text: "log_model" },
      { key: "estimated_cost", text: "log_cost", format: "usd" },
    ],
  });
  table.setRows(recent);
  const links = create("span", { className: "links" },
    create("a", { text: "people_all_answers", href: address("admin/log", { user_id: id }) }),
    create("a", { text: "people_audit", href: address("admin/audit-log", { user_id: id }) }));
  return createSection("people_recent", [links], table.element);
}

// The user's name has to be typed: erasure is final.
function createErasure({ id, path, reload }) {
  const erase = () => {
    const name = create("input", { name: "confirmation", required: true, autocomplete: "off" });
    openForm({
      title: "people_erase_title",
      values: { name: id },
      action: "people_erase",
      fields: [create("p", { text: "people_erase_detail" }), createField("people_erase_confirm", name)],
      submit: async () => {
        if (name.value !== id) throw { key: "people_erase_mismatch" };
        const { erased } = await sendJson("DELETE", `${path}/texts`);
        await reload();
        showProblem(document.querySelector("#drawer .erased"), { key: "people_erased", count: erased });
      },
    });
  };
  const note = create("p", { className: "note erased" });
  note.setAttribute("role", "status");
  return createSection("people_erase_section", [createButton("people_erase", erase, { kind: "danger" })], create("p", { className: "note", text: "people_erase_detail" }), note);
}
