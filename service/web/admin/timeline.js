// A timeline of an answer: bars for its attempts, and the times of its first token and its end, in milliseconds.

import { create } from "./elements.js";
import { formatMs } from "./format.js";
import { words } from "../text.js";

/** The timeline of a log row, as a list whose items name their times. */
export function createTimeline(row) {
  const begun = new Date(row.created_at).getTime();
  const attempts = (row.attempt_list ?? []).map(({ provider, model, status, started_at: start, ended_at: end }) => ({
    name: `${provider} · ${model}`,
    tone: status === "completed" ? "good" : "bad",
    from: Math.max(0, new Date(start) - begun),
    to: Math.max(0, new Date(end) - begun),
  }));
  const total = Math.max(row.response_time_ms, ...attempts.map(({ to }) => to), 1);
  const parts = listParts(row);
  return create("ol", { className: "timeline" }, ...[...parts, ...attempts].map((part) => createLine(part, total)));
}

// Before the first token: search, the calls of providers and their queues. Afterwards the text is received.
function listParts({ response_time_ms: end, first_token_ms: first }) {
  if (first === null) return [{ key: "log_part_answer", tone: "plain", from: 0, to: end }];
  return [
    { key: "log_part_first", tone: "wait", from: 0, to: first },
    { key: "log_part_text", tone: "plain", from: first, to: end },
  ];
}

function createLine({ key, name, tone, from, to }, total) {
  const bar = create("span", { className: "part" });
  bar.dataset.tone = tone;
  bar.style.insetInlineStart = `${(100 * from) / total}%`;
  bar.style.width = `${(100 * Math.max(to - from, 0)) / total}%`;
  const track = create("span", { className: "track" }, bar);
  track.setAttribute("aria-hidden", true);
  const label = key ? create("span", { text: key }) : create("span", { className: "identifier", content: name });
  return create("li", {}, label, track, create("span", { className: "times", content: `${words("log_from_to", { from: formatMs(from), to: formatMs(to) })}` }));
}
