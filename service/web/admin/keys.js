// API keys of a user: created and shown once, rotated, revoked.

import { sendJson } from "../service.js";
import { confirmAction, createDialog, openForm } from "./dialogs.js";
import { create, createButton, createCopyButton, createField, createPill, createSelect, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { named } from "./plans.js";
import { createTable } from "./table.js";

const SCOPES = ["ask", "documents", "logs", "keys"];
const GRACE_HOURS = [0, 1, 24, 168];
const HOUR_SECONDS = 3600;

/**
 * Opens the form of a new key, of a certain user or of one to be entered. `onDone()` is called after its creation.
 * `hasRole`: whether the role can be chosen, which requires an admin.
 */
export function createKey({ user = null, hasRole = true, onDone }) {
  const role = createSelect([["user", "role_user"], ["admin", "role_admin"]], "user");
  role.name = "role";
  const scopes = create("fieldset", { className: "scopes" }, create("legend", { text: "keys_scopes" }),
    ...SCOPES.map((scope) => create("label", {}, create("input", { type: "checkbox", name: "scope", value: scope, checked: true }), " ", create("span", { text: `keys_scope_${scope}` }))));
  const owner = create("input", { name: "user", required: true, maxLength: 200, autocomplete: "off" });
  openForm({
    title: user ? "keys_new_title" : "keys_new_any_title",
    values: { name: user ?? "" },
    action: "create_it",
    fields: [
      ...(user ? [] : [createField("people_user", owner, "keys_user_hint")]),
      createField("keys_name", create("input", { name: "label", maxLength: 100, autocomplete: "off" }), "keys_name_hint"),
      ...(hasRole ? [createField("keys_role", role, "keys_role_hint")] : []),
      scopes,
      createField("keys_days", create("input", { name: "days", type: "number", min: 1, max: 3650, step: 1 }), "keys_days_hint"),
    ],
    submit: async (form) => {
      const { label, days } = form.elements;
      const chosen = [...form.querySelectorAll("[name=scope]:checked")].map(({ value }) => value);
      const key = await sendJson("POST", "ai/keys", {
        user_id: user ?? owner.value.trim(), name: label.value.trim(), role: role.value, scopes: chosen,
        ...(days.value ? { expires_in_days: Number(days.value) } : {}),
      });
      showKey(key, onDone);
    },
  });
}

// The only time that the key is shown.
function showKey({ key, user_id: user }, onDone) {
  const secret = create("code", { className: "secret", content: key });
  const dialog = createDialog("keys_created_title", { name: user }, [
    create("p", { text: "keys_created_detail" }), secret,
    create("p", { className: "actions" }, createCopyButton(key, "copy"), createButton("keys_stored", () => dialog.close(), { kind: "primary" })),
  ]);
  dialog.addEventListener("close", () => onDone());
}

/** The table of a user's keys. `onChange()` is called after a change. Returns { element, setKeys(keys) }. */
export function createKeys(onChange) {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const change = async (action) => {
    try {
      await action();
      showProblem(problem, null);
    } catch (failure) {
      showProblem(problem, failure);
    }
  };
  const revoke = async (key) => {
    const isConfirmed = await confirmAction({ title: "keys_revoke_title", detail: "keys_revoke_detail", action: "keys_revoke", values: { name: describeKey(key) } });
    if (isConfirmed) await change(async () => {
      await sendJson("DELETE", `ai/keys/${key.id}`);
      await onChange();
    });
  };
  const table = createTable({
    caption: "keys",
    empty: { text: "keys_none" },
    columns: [
      { key: "name", text: "keys_key", cell: (key) => create("span", {}, ...(key.name ? [create("span", { content: key.name }), create("br")] : []), create("span", { className: "identifier soft", content: `${key.prefix}…` })) },
      { key: "role", text: "keys_role", cell: ({ role, scopes }) => create("span", {}, create("span", { text: `role_${role}` }), ...(scopes.length < SCOPES.length ? [create("br"), create("small", { className: "soft", content: scopes.join(", ") })] : [])) },
      { key: "state", text: "people_state", cell: createKeyState },
      { key: "last_used_at", text: "keys_last_used", format: "relative" },
      { key: "actions", text: "actions_column", numeric: true, cell: (key) => (readState(key) === "active" ? create("span", { className: "actions" },
        ...(key.replaced_by ? [] : [named(createButton("keys_rotate", () => rotateKey(key, onChange)), describeKey(key))]),
        named(createButton("keys_revoke", () => revoke(key), { kind: "danger" }), describeKey(key))) : create("span")) },
    ],
  });
  return { element: create("div", { className: "key-table" }, problem, table.element), setKeys: table.setRows };
}

const describeKey = ({ name, prefix }) => (name ? `${name} (${prefix}…)` : `${prefix}…`);

function readState({ revoked_at: revoked, expires_at: expires }) {
  if (revoked) return "revoked";
  return expires && new Date(expires) <= Date.now() ? "expired" : "active";
}

function createKeyState(key) {
  const state = readState(key);
  const pill = createPill(`keys_${state}`, state === "active" ? "good" : "plain");
  if (state !== "active" || !key.expires_at) return pill;
  return create("span", {}, pill, create("br"), create("small", { className: "soft" }, create("span", { text: "keys_until" }), " ", createValue("day", key.expires_at)));
}

function rotateKey(key, onChange) {
  const grace = createSelect(GRACE_HOURS.map((hours) => [hours, `keys_grace_${hours}`]), 24);
  openForm({
    title: "keys_rotate_title",
    values: { name: describeKey(key) },
    action: "keys_rotate",
    fields: [create("p", { text: "keys_rotate_detail" }), createField("keys_grace", grace)],
    submit: async () => showKey(await sendJson("POST", `ai/keys/${key.id}/rotate`, { grace_seconds: grace.value * HOUR_SECONDS }), onChange),
  });
}
