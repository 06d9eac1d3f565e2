// Billing: balances of users, customers of Stripe with their metered usage, events that wait for a decision, webhooks that
// failed, and the comparison with Stripe.

import { CustomerPanel, ReviewPanel } from "./billing_customers.js";
import { ReconciliationPanel } from "./billing_reconciliation.js";
import { WebhookPanel } from "./billing_webhooks.js";
import { create } from "./elements.js";
import { openPage } from "./shell.js";
import { openWallet, WalletPanel } from "./wallets.js";
import "./billing_text.js";

openPage("admin/billing", async (main) => {
  const wallets = new WalletPanel();
  const customers = new CustomerPanel();
  const panels = [wallets, customers, new ReviewPanel(() => customers.load()), new WebhookPanel(), new ReconciliationPanel()];
  main.append(create("p", { className: "lead", text: "billing_lead" }), ...panels.map(({ element }) => element));
  await Promise.all(panels.map((panel) => panel.load()));
  const user = new URLSearchParams(location.search).get("user");
  if (user) openWallet(user, () => wallets.load());
});
