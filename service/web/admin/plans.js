// Plans: named limits, created, changed and deleted.

import { fetchJson, sendJson } from "../service.js";
import { confirmAction, openForm } from "./dialogs.js";
import { create, createButton, createField, createPanel, showProblem } from "./elements.js";
import { createLimitFields, createLimitsText, readLimits } from "./limits.js";
import { createTable } from "./table.js";

const NAME_PATTERN = "[A-Za-z0-9._\\-]{1,50}";

/** The panel of plans. `onChange()` is called after a change. Returns { element, load(), names }. */
export function createPlans(onChange) {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const editPlan = (plan) => openForm({
    title: plan ? "plans_change_title" : "plans_new_title",
    values: { name: plan?.name ?? "" },
    action: "save",
    fields: [...(plan ? [] : [createField("plans_name", create("input", { name: "plan", required: true, pattern: NAME_PATTERN, autocomplete: "off" }), "plans_name_hint")]), createLimitFields(plan?.limits)],
    submit: async (form) => {
      await sendJson("PUT", `ai/plans/${encodeURIComponent(plan?.name ?? form.elements.plan.value)}`, { ...readLimits(form), prepaid: plan?.prepaid ?? false, markup: plan?.markup ?? null });
      await onChange();
    },
  });
  const deletePlan = async ({ name }) => {
    const isConfirmed = await confirmAction({ title: "plans_delete_title", detail: "plans_delete_detail", action: "delete_it", values: { name } });
    if (!isConfirmed) return;
    try {
      await sendJson("DELETE", `ai/plans/${encodeURIComponent(name)}`);
      showProblem(problem, null);
      await onChange();
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const table = createTable({
    caption: "plans",
    empty: { text: "plans_none", hint: "plans_none_hint" },
    columns: [
      { key: "name", text: "plans_name" },
      { key: "limits", text: "plans_limits", cell: ({ limits }) => createLimitsText(limits) },
      { key: "actions", text: "actions_column", numeric: true, cell: (plan) => create("span", { className: "actions" },
        named(createButton("change", () => editPlan(plan)), plan.name),
        named(createButton("delete_it", () => deletePlan(plan), { kind: "danger" }), plan.name)) },
    ],
  });
  const panel = {
    names: [],
    element: createPanel("plans", [create("p", { className: "note lead", text: "plans_lead" }), problem, table.element], [createButton("plans_new", () => editPlan(null))]),
    load: async () => {
      const { items } = await fetchJson("ai/plans");
      panel.names = items.map(({ name }) => name);
      table.setRows(items);
    },
  };
  return panel;
}

/** Adds the name of a row to the description of its button. */
export function named(button, name) {
  button.title = name;
  return button;
}
