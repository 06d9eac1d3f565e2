// The details of an answer in the drawer: texts, sources, attempts, a timeline and the account.

import { openDocument } from "../drawer.js";
import { renderText } from "../passage.js";
import { resolveUrl } from "../root.js";
import { fetchJson } from "../service.js";
import { languageOf } from "../text.js";
import { openDrawer } from "./dialogs.js";
import { create, createCopyButton, createPill, createTerms, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { createStatus } from "./log_status.js";
import { createTimeline } from "./timeline.js";
import "./log_text.js";

const TITLE_CHARACTERS = 120;
const PASSAGE_CHARACTERS = 280;

/** Opens the row of an answer; its id is part of the page's address while it is open. */
export async function openAnswer(id, { isOwn = false } = {}) {
  const status = create("p", { className: "note", text: "loading" });
  const drawer = openDrawer({ title: "…", children: [status] });
  setAddress(id);
  drawer.addEventListener("close", () => setAddress(null), { once: true });
  try {
    show(await fetchJson(`ai/logs/${encodeURIComponent(id)}`), isOwn);
  } catch (problem) {
    showProblem(status, problem);
  }
}

function setAddress(id) {
  const query = new URLSearchParams(location.search);
  if (id) query.set("id", id);
  else query.delete("id");
  history.replaceState(null, "", `${query}` ? `?${query}` : location.pathname);
}

function show(row, isOwn) {
  const title = row.prompt?.trim().split("\n")[0].slice(0, TITLE_CHARACTERS) || row.id;
  const children = [createHead(row, isOwn), ...createTexts(row), ...createSources(row, isOwn), createSection("log_timeline", createTimeline(row)), ...createAttempts(row), createAccount(row)];
  openDrawer({ title, meta: "log_meta", values: { user: row.user_id ?? "?", time: new Date(row.created_at).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" }) }, children });
}

function createHead(row, isOwn) {
  const pills = [
    row.status ? createStatus(row.status) : null,
    row.damaged ? createPill("log_damaged", "bad") : null,
    row.erased_at ? createPill("log_erased", "plain") : null,
    row.estimated_cost === null ? createPill("log_cost_unknown", "warn") : null,
    row.usage_source === "estimated" ? createPill("log_estimated", "warn") : null,
  ];
  const links = isOwn ? null : create("span", { className: "links" },
    create("a", { text: "log_of_user", href: resolveUrl(`admin/log?${new URLSearchParams({ user_id: row.user_id })}`) }),
    create("a", { text: "log_person", href: resolveUrl(`admin/people?${new URLSearchParams({ user: row.user_id })}`) }));
  return create("div", { className: "row-between detail-head" }, create("span", { className: "pills" }, ...pills.filter(Boolean)), links);
}

const createSection = (text, ...children) => create("section", { className: "detail" }, create("h3", { text }), ...children);

function createTexts(row) {
  const earlier = (row.messages ?? []).slice(0, -1);
  const history = earlier.map(({ role, content }) => create("div", { className: "message" }, create("p", { className: "soft", text: `log_role_${role}` }), createPlain(content)));
  const answer = row.response ? createRendered(row.response) : create("p", { className: "note", text: row.erased_at ? "log_erased_detail" : "log_no_text" });
  return [
    ...(history.length > 0 ? [create("details", { className: "detail" }, create("summary", { text: "log_history", values: { count: history.length } }), ...history)] : []),
    createSection("log_prompt", row.prompt ? createPlain(row.prompt) : create("p", { className: "note", text: "log_no_text" })),
    createSection("log_answer", answer),
  ];
}

function createPlain(text) {
  return create("div", { className: "plain-text", content: text, lang: languageOf(text) });
}

function createRendered(text) {
  const element = renderText(text, true);
  element.lang = languageOf(text);
  return element;
}

function createSources(row, isOwn) {
  const sections = [["log_sources", row.sources], ["log_nearest", row.nearest]].filter(([, passages]) => passages?.length > 0);
  return sections.map(([text, passages]) => createSection(text, create("ol", { className: "passages" }, ...passages.map((passage) => createPassage(passage, row.id, isOwn)))));
}

function createPassage({ n, title, text, sentence, document_id: id, supported }, answerId, isOwn) {
  const quote = sentence ? [...text].slice(...sentence).join("") : "";
  const open = create("button", { type: "button", className: "open", content: title });
  open.addEventListener("click", () => {
    openDocument(id, { passage: text, sentence: quote });
    // Closing the document returns to the answer.
    document.getElementById("drawer").addEventListener("close", () => openAnswer(answerId, { isOwn }), { once: true });
  });
  const excerpt = (quote || text).slice(0, PASSAGE_CHARACTERS);
  return create("li", {}, create("span", { className: "n", content: n }), create("div", {}, open,
    create("p", { className: "soft", content: excerpt.length < (quote || text).length ? `${excerpt}…` : excerpt, lang: languageOf(text) }),
    supported === false ? create("p", { className: "note problem", text: "log_unsupported" }) : null));
}

/** The attempts of a row. One attempt has no list of its own: its account is that of the row. */
export function listAttempts(row) {
  if (row.attempt_list) return row.attempt_list;
  if (!row.attempts) return [];
  return [{ ...row, model: row.provider_model ?? row.model, started_at: null, ended_at: null }];
}

function createAttempts(row) {
  const attempts = listAttempts(row);
  if (attempts.length === 0) return [createSection("log_attempts", create("p", { className: "note", text: "log_no_attempts" }))];
  return [createSection("log_attempts", create("ol", { className: "attempts" }, ...attempts.map((attempt) => createAttempt(attempt, row))))];
}

function createAttempt(attempt, row) {
  const { provider, model, status, error_code: code, unbilled, prompt_tokens: prompt, completion_tokens: completion, estimated_cost: cost } = attempt;
  const ms = attempt.started_at ? new Date(attempt.ended_at) - new Date(attempt.started_at) : row.response_time_ms;
  const figures = [
    createValue("ms", ms),
    prompt === null ? create("span", { text: "log_tokens_unknown" }) : create("span", { text: "log_tokens_of", values: { prompt, completion } }),
    unbilled ? create("span", { text: "log_unbilled" }) : cost === null ? create("span", { text: "log_cost_unknown" }) : createValue("usd_exact", cost),
    ...(code ? [create("span", { className: "identifier", content: code })] : []),
  ];
  return create("li", {},
    create("div", { className: "row-between" }, create("span", {}, ...(provider ? [create("strong", { content: provider }), " "] : []), create("span", { className: "identifier", content: model })), createStatus(status)),
    create("div", { className: "figures" }, ...figures));
}

function createAccount(row) {
  const text = (content) => create("span", { className: "identifier", content: content ?? "–" });
  const value = (format, amount) => createValue(format, amount);
  return createSection("log_account", createTerms([
    ["log_cost", value("usd_exact", row.estimated_cost)],
    ...(row.charge == null ? [] : [["log_charge", value("usd_exact", row.charge)]]),
    ["log_prompt_tokens", value("count", row.prompt_tokens)],
    ["log_completion_tokens", value("count", row.completion_tokens)],
    ["log_cached_tokens", value("count", row.cached_tokens)],
    ["log_reasoning_tokens", value("count", row.reasoning_tokens)],
    ["log_usage_source", row.usage_source ? create("span", { text: `usage_${row.usage_source}` }) : text(null)],
    ["log_finish_reason", text(row.finish_reason)],
    ["log_endpoint", text(row.endpoint)],
    ["log_model", text(row.model)],
    ["log_key", text(row.key_id)],
    ["log_asked_by", text(row.asked_by)],
    ["log_conversation", text(row.conversation_id)],
    ["log_request", text(row.request_id)],
    ["log_id", create("span", { className: "with-copy" }, text(row.id), createCopyButton(row.id))],
  ]));
}
