// The form for an amount, which leads to Stripe Checkout, and the button that leads to Stripe's portal.

import { sendJson } from "../service.js";
import { forget, recall, remember } from "../storage.js";
import { say } from "../text.js";
import { create, createButton, createField, showProblem } from "./elements.js";
import { formatUsd } from "./format.js";

const MARK = "kotae.checkout"; // { user, entry }: who pays, and the newest entry before
const SUGGESTED = "20";

/** The mark of the last payment that this user began in this browser; null without one. */
export function readMark(user) {
  try {
    const mark = JSON.parse(recall(MARK));
    return mark?.user === user ? mark : null;
  } catch {
    return null; // not ours
  }
}

export const forgetMark = () => forget(MARK);

/** The form. `createMark()` returns what is remembered of a payment. Returns { element, setBounds(min, max) }. */
export function createTopUp(createMark) {
  const amount = create("input", { name: "amount", type: "number", required: true, step: "0.01", inputMode: "decimal", autocomplete: "off", value: SUGGESTED });
  const field = createField("credit_amount", amount);
  const bounds = create("small");
  field.append(bounds);
  const send = create("button", { text: "credit_pay", type: "submit", className: "primary" });
  const problem = createProblem();
  const element = create("form", { className: "top-up" }, create("div", { className: "toolbar" }, field, send), create("p", { className: "note", text: "credit_pay_note" }), problem);
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    return leave(send, problem, "billing/checkout", { amount: amount.value }, () => remember(MARK, JSON.stringify(createMark())));
  });
  return {
    element,
    setBounds: (min, max) => {
      if (min === undefined) return;
      Object.assign(amount, { min, max });
      say(bounds, "credit_bounds", { min: formatUsd(min), max: formatUsd(max) });
    },
  };
}

/** The button of the portal. Returns { button, problem }. */
export function createPortalButton() {
  const problem = createProblem();
  const button = createButton("credit_portal", () => leave(button, problem, "billing/portal", {}));
  return { button, problem };
}

function createProblem() {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  return problem;
}

/**
 * Requests a page of Stripe and goes there. The button stays disabled until the page is shown again, so a double click
 * sends one request.
 */
async function leave(button, problem, path, body, prepare = () => {}) {
  if (button.disabled) return;
  button.disabled = true;
  try {
    const { url } = await sendJson("POST", path, body);
    showProblem(problem, null);
    prepare();
    addEventListener("pageshow", () => (button.disabled = false), { once: true });
    location.assign(url);
  } catch (failure) {
    showProblem(problem, failure);
    button.disabled = false;
  }
}
