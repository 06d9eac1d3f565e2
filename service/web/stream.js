// One answer as it arrives. A POST starts it, whose response has the reason of a refusal; the browser's EventSource
// reads it and reconnects with the last event id. This module adds: when to stop trying, how to continue when the
// browser stops reconnecting, and that no event is shown twice.

import { beginAnswer, fetchAnswer, findCause, stopAnswer } from "./service.js";

const RECONNECT_MS_MAX = 60_000; // an answer that has ended is in the log
const STOP_MS_MAX = 3000; // maximum wait for the end of a stopped answer

/**
 * Starts an answer, in a conversation, when `ready` is, or resumes the answer `id`, and calls `on.begun(id)`, `on.start(start)`, `on.delta(text)`,
 * `on.done(answer)`, `on.whole(answer)` (the complete answer, replacing earlier text), `on.failure(problem)` and
 * `on.state("answering" | "reconnecting" | "stopping")`. Returns a function that stops the answer for all clients.
 */
export function openStream({ question, grounded, id = null, conversation = null, ready = null }, on) {
  const seen = { id, seq: -1 };
  let source = null;
  let patience; // timer that ends the attempts
  let recoveries = 0;
  let stopping = false;
  let over = false;

  (id ? recover : begin)();
  return stop;

  async function begin() {
    let started;
    try {
      await ready;
      started = await beginAnswer({ prompt: question, grounded, ...(conversation ? { conversation_id: conversation } : {}) });
    } catch (problem) {
      return end(() => on.failure(problem));
    }
    seen.id = started.id;
    on.begun(seen.id);
    if (stopping) stopAnswer(seen.id).catch(() => {});
    // Relative, like all URLs of the page: a proxy may serve it under a prefix that the service does not know.
    if (!over) listen(`ai/answers/${encodeURIComponent(seen.id)}/events${new URL(started.events_url, location).search}`);
  }

  function listen(url) {
    source = new EventSource(url);
    hear("start", on.start);
    hear("message", ({ delta }) => on.delta(delta));
    hear("done", (answer) => end(() => on.done(answer)));
    hear("failure", (problem) => end(() => on.failure(problem)));
    source.onopen = () => {
      clearTimeout(patience);
      patience = undefined;
      if (seen.seq >= 0 && !stopping) on.state("answering");
    };
    source.onerror = () => {
      if (over) return;
      if (!stopping) on.state("reconnecting");
      patience ??= setTimeout(lose, RECONNECT_MS_MAX);
      if (source.readyState === EventSource.CLOSED) setTimeout(recover, recoveries++ ? 1000 : 0);
    };
  }

  // An id is {answer}.{characters so far}. Repeated events and events of other answers are dropped.
  function hear(name, act) {
    source.addEventListener(name, (event) => {
      const [, id, seq] = /^(.+)\.(\d+)$/.exec(event.lastEventId) ?? [];
      if (over || id !== seen.id || Number(seq) <= seen.seq) return;
      seen.seq = Number(seq);
      act(JSON.parse(event.data));
    });
  }

  // The browser has stopped at a response that is not a stream, or the page is new. The answer runs or is in the log.
  async function recover() {
    if (over) return;
    let found;
    try {
      found = await fetchAnswer(seen.id);
    } catch (problem) {
      if (problem.status && problem.status < 500) return lose();
      return setTimeout(recover, 2000);
    }
    if (over) return;
    if (found.status !== "in_progress") return end(() => on.whole(found));
    const after = seen.seq >= 0 ? `?${new URLSearchParams({ last_event_id: `${seen.id}.${seen.seq}` })}` : "";
    listen(`ai/answers/${encodeURIComponent(seen.id)}/events${after}`);
  }

  async function lose() {
    if (over) return;
    source?.close();
    const problem = await findCause(seen.seq >= 0);
    end(() => on.failure(problem));
  }

  function stop() {
    if (stopping || over) return;
    stopping = true;
    on.state("stopping");
    if (seen.id) stopAnswer(seen.id).catch(() => {});
    setTimeout(() => end(() => on.whole(null)), STOP_MS_MAX); // end it locally if the service is unreachable
  }

  function end(act) {
    if (over) return;
    over = true;
    clearTimeout(patience);
    source?.close();
    act();
  }
}
