// The overview: cost, tokens, answers, errors and response times of the last 30 days.

import { fetchAnalytics } from "./analytics.js";
import { create, createTiles, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { openPage } from "./shell.js";
import "./overview_text.js";

openPage("admin", async (main) => {
  try {
    const [totals] = await fetchAnalytics({ metrics: ["cost", "total_tokens", "answers", "errors", "response_time_ms"] });
    main.append(createSummary(totals ?? { cost: "0", answers: 0, errors: 0, total_tokens: 0, response_time_ms: {} }));
  } catch (problem) {
    main.append(showProblem(create("p", { className: "note" }), problem));
  }
});

function createSummary({ cost, answers, errors, total_tokens: tokens, response_time_ms: times }) {
  return createTiles([
    { text: "overview_cost", value: createValue("usd", cost) },
    { text: "overview_answers", value: createValue("count", answers) },
    { text: "overview_errors", value: createValue("count", errors) },
    { text: "overview_tokens", value: createValue("compact", tokens) },
    { text: "overview_p50", value: createValue("ms", times.p50) },
    { text: "overview_p95", value: createValue("ms", times.p95) },
  ]);
}
