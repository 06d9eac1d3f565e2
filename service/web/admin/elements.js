// Building blocks of the pages: elements with translated texts, panels, notices, and copying to the clipboard.

import { describe, say, words } from "../text.js";

/** Creates an element. `text` is the key of a text; `content` is shown as it is; other options are properties. */
export function create(tag, { text, values, content, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text) say(element, text, values);
  if (content !== undefined) element.textContent = content;
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A button; `kind` is `primary`, `quiet` or `danger`. */
export function createButton(text, onClick, { kind = "quiet", ...options } = {}) {
  const button = create("button", { text, type: "button", className: kind, ...options });
  button.addEventListener("click", onClick);
  return button;
}

/** A section with a heading. `tools` stand opposite of the heading. */
export function createPanel(text, children, tools = []) {
  const heading = create("header", { className: "row-between" }, create("h2", { text }), ...tools);
  return create("section", { className: "panel" }, heading, ...children);
}

/** A list of terms and values: [[key of a text, node or string]]. */
export function createTerms(entries) {
  return create("dl", { className: "terms" }, ...entries.flatMap(([text, value]) => [create("dt", { text }), create("dd", {}, value)]));
}

/** Figures side by side: [{ text, value, note? }] with nodes as values and notes. */
export function createTiles(entries) {
  const tiles = entries.map(({ text, value, note = null }) => create("div", { className: "tile" },
    create("dt", { text }), create("dd", {}, create("p", { className: "figure" }, value), note && create("p", { className: "note" }, note))));
  return create("dl", { className: "tiles" }, ...tiles);
}

/** A label with a control, and a hint below. */
export function createField(text, control, hint = null) {
  control.classList.add("control");
  return create("label", { className: "form-field" }, create("span", { text }), control, hint && create("small", { text: hint }));
}

/** Sets the text of `key` as the placeholder of an input; it follows changes of the language. */
export function setHint(input, key) {
  input.dataset.hint = key;
  input.placeholder = words(key);
}

/** A selection. `options` are pairs of value and key of a text. */
export function createSelect(options, value, onChange) {
  const select = create("select", { className: "control" }, ...options.map(([key, text]) => create("option", { text, value: key })));
  select.value = value;
  if (onChange) select.addEventListener("change", () => onChange(select.value));
  return select;
}

/** A short state such as `active`. `tone` is `good`, `bad`, `warn` or `plain`. */
export const createPill = (text, tone = "plain", values = {}) => {
  const pill = create("span", { text, values, className: "pill" });
  pill.dataset.tone = tone;
  return pill;
};

/** Shows a problem of a request in an element with `role=status` or `role=alert`; null clears it. */
export function showProblem(element, problem) {
  if (problem instanceof Error) throw problem;
  element.classList.toggle("problem", problem !== null);
  delete element.dataset.text;
  if (problem?.key) return say(element, problem.key, problem);
  element.textContent = problem === null ? "" : describe(problem);
  return element;
}

/** A button that copies `content`. */
export function createCopyButton(content, text = "copy") {
  const button = createButton(text, async () => {
    await navigator.clipboard.writeText(content);
    say(button, "copied");
  });
  return button;
}
