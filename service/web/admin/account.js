// My account: the user's limits and their usage.

import { fetchJson } from "../service.js";
import { create, createPanel, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { openPage } from "./shell.js";
import { createTable } from "./table.js";
import "./account_text.js";

openPage("account", async (main) => {
  try {
    const { limits } = await fetchJson("ai/usage");
    main.append(createLimits(limits));
  } catch (problem) {
    main.append(showProblem(create("p", { className: "note" }), problem));
  }
});

function createLimits(limits) {
  const amount = (name) => (row) => createValue(row.name.includes("usd") ? "usd" : "count", row[name]);
  const table = createTable({
    caption: "account_limits",
    empty: { text: "account_no_limits" },
    columns: [
      { key: "name", text: "account_limit", cell: ({ name }) => create("span", { text: `limit_${name}` }) },
      { key: "used", text: "account_used", numeric: true, cell: amount("used") },
      { key: "limit", text: "account_allowed", numeric: true, cell: amount("limit") },
    ],
  });
  table.setRows(limits);
  return createPanel("account_limits", [table.element]);
}
