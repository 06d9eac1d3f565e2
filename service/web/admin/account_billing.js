// My credit: balance, entries and invoices of the user of this session, and top-ups with Stripe Checkout.
//
// Only Stripe's report of a payment adds credit. It may arrive after the browser has returned, so the page asks again for
// a while until there is a payment that was not there before.

import { create, createButton, createPanel, showProblem } from "./elements.js";
import { createInvoices } from "./invoices.js";
import { createBalance, EntryList, fetchAccount } from "./ledger.js";
import { openPage } from "./shell.js";
import { createPortalButton, createTopUp, forgetMark, readMark } from "./top_up.js";
import "./account_billing_text.js";

const WAITS_MS = [1000, 1000, 2000, 2000, 3000, 3000, 5000, 5000, 10_000, 10_000, 15_000, 15_000];

openPage("account/billing", async (main, session) => {
  const page = new CreditPage(session.user_id);
  main.append(create("p", { className: "lead", text: "credit_lead" }), page.notice, page.problem, page.content);
  await page.load();
  await page.followReturn(new URLSearchParams(location.search).get("payment"));
});

class CreditPage {
  constructor(userId) {
    this.userId = userId;
    this.notice = create("div", { className: "return" });
    this.notice.setAttribute("role", "status");
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.topUp = createTopUp(() => ({ user: userId, entry: this.account.entries[0]?.id ?? null }));
    this.portal = createPortalButton();
    this.entries = new EntryList();
    this.balance = create("div");
    this.payment = create("div");
    this.invoices = create("div");
    this.content = create("div", { className: "stack", hidden: true }, this.balance, this.payment, createPanel("entries", [this.entries.element]), this.invoices);
    // The browser may go back from Stripe to the page as it was left.
    addEventListener("pageshow", ({ persisted }) => persisted && this.load());
  }

  async load() {
    try {
      this.show(await fetchAccount());
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
  }

  show(account) {
    this.account = account;
    this.balance.replaceChildren(createBalance(account));
    this.showPayment(account);
    this.entries.show(account);
    this.invoices.replaceChildren(...createInvoices(account));
    this.content.hidden = false;
  }

  // The form is created once: refreshing the balance keeps what was typed.
  showPayment({ prepaid, markup, checkout, portal, top_up_min: min, top_up_max: max }) {
    if (this.payment.children.length > 0) return;
    const price = create("p", { className: "note", text: Number(markup ?? 1) === 1 ? "credit_at_cost" : "credit_markup", values: { markup } });
    if (checkout && prepaid) this.topUp.setBounds(min, max);
    const parts = !prepaid ? [create("p", { text: "credit_not_prepaid" })]
      : checkout ? [this.topUp.element, price] : [create("p", { text: "credit_no_checkout" }), price];
    this.payment.append(createPanel(prepaid && checkout ? "credit_add" : "credit_payment", [...parts, this.portal.problem], portal ? [this.portal.button] : []));
  }

  /** Explains the return from Checkout: `success`, `cancelled`, or null. */
  async followReturn(result) {
    if (result === "cancelled") {
      this.endReturn();
      this.say("credit_cancelled");
    } else if (result === "success" && this.account) await this.waitCredited();
  }

  async waitCredited() {
    const mark = readMark(this.userId) ?? { entry: this.account.entries[0]?.id ?? null };
    for (const wait of [0, ...WAITS_MS]) {
      if (wait) {
        await new Promise((resolve) => setTimeout(resolve, wait));
        await this.load();
      }
      if (hasNewPayment(this.account.entries, mark.entry)) {
        this.endReturn();
        this.say("credit_arrived");
        return;
      }
      this.say("credit_waiting");
    }
    this.say("credit_late", createButton("credit_check", () => this.waitCredited()));
  }

  // A reload does not explain the payment again.
  endReturn() {
    forgetMark();
    history.replaceState(null, "", location.pathname);
  }

  say(key, ...tools) {
    if (this.notice.querySelector("p")?.dataset.text === key) return; // announced once
    this.notice.replaceChildren(create("div", { className: "panel row-between" }, create("p", { text: key }), ...tools));
  }
}

/** Whether there is a payment among the entries before the one with this id, newest first. */
function hasNewPayment(entries, id) {
  const end = entries.findIndex((entry) => entry.id === id);
  return entries.slice(0, end < 0 ? entries.length : end).some(({ kind }) => kind === "top_up");
}
