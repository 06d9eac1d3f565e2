// Dialogs: confirmation, forms, and the drawer at the side.

import { create, createButton, showProblem } from "./elements.js";
import { label, say } from "../text.js";

const CLOSE_ICON = "m5 5 10 10M15 5 5 15";

/** Asks before an action. Resolves to whether it was confirmed. */
export function confirmAction({ title, detail, action, values = {}, danger = true }) {
  return new Promise((answer) => {
    let confirmed = false;
    const cancel = createButton("cancel", () => dialog.close());
    const confirm = createButton(action, () => {
      confirmed = true;
      dialog.close();
    }, { kind: danger ? "danger" : "primary" });
    const dialog = createDialog(title, values, [
      create("p", { text: detail, values }),
      create("p", { className: "actions" }, cancel, confirm),
    ]);
    dialog.addEventListener("close", () => answer(confirmed));
    cancel.focus();
  });
}

/**
 * Opens a dialog with a form. `submit()` is called with the form and may throw a problem, which is shown; otherwise the
 * dialog closes. Returns the dialog.
 */
export function openForm({ title, values = {}, fields, action, submit }) {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const send = create("button", { text: action, type: "submit", className: "primary" });
  const cancel = createButton("cancel", () => dialog.close());
  const form = create("form", {}, ...fields, problem, create("p", { className: "actions" }, cancel, send));
  const dialog = createDialog(title, values, [form]);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      await submit(form);
      dialog.close();
    } catch (failure) {
      showProblem(problem, failure);
    }
    send.disabled = false;
  });
  return dialog;
}

/** Opens a modal dialog with a heading; it is removed when it closes. */
export function createDialog(title, values, children) {
  const heading = create("h2", { text: title, values, id: "dialog-title" });
  const dialog = create("dialog", { className: "dialog" }, heading, ...children);
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Creates the drawer of the page, which `openDrawer` and `openDocument` (web/drawer.js) use. */
export function createDrawer() {
  const close = create("button", { type: "button", id: "drawer-close", className: "quiet icon" }, createIcon(CLOSE_ICON));
  label(close, "close");
  const meta = create("p", { className: "meta" });
  meta.setAttribute("role", "status");
  const body = create("div", { className: "body", tabIndex: 0 });
  const drawer = create("dialog", { id: "drawer" },
    create("header", { className: "row-between" }, create("h2", { id: "drawer-title" }), close),
    create("div", { className: "row-between about" }, meta, create("p", { className: "original", hidden: true }, create("a", { download: "" }))),
    body);
  drawer.setAttribute("aria-labelledby", "drawer-title");
  return drawer;
}

/** Opens the drawer with a title, which is shown as it is, and children. `meta` is the key of a text. */
export function openDrawer({ title, meta = null, values = {}, children }) {
  const drawer = document.getElementById("drawer");
  const heading = drawer.querySelector("h2");
  delete heading.dataset.text;
  heading.textContent = title;
  drawer.querySelector(".original").hidden = true;
  const line = drawer.querySelector(".meta");
  if (meta) say(line, meta, values);
  else delete line.dataset.text;
  if (!meta) line.textContent = "";
  drawer.querySelector(".body").replaceChildren(...children);
  if (!drawer.open) drawer.showModal();
  return drawer;
}

/** A line drawing of 20 × 20 units. `filled`: a path without outline. */
export function createIcon(path, size = 16, filled = "") {
  const svg = createSvg("svg", { viewBox: "0 0 20 20", width: size, height: size, "aria-hidden": true });
  svg.append(createSvg("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round" }));
  if (filled) svg.append(createSvg("path", { d: filled, fill: "currentColor" }));
  return svg;
}

function createSvg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}
