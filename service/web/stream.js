// One answer as it arrives, over the browser's own EventSource. EventSource reconnects by itself and tells the server the
// last event it saw; what it leaves open is decided here: when to stop trying, and that nothing is shown twice.

import { findCause } from "./service.js";

const RECONNECT_MS_MAX = 30_000; // longer than the server keeps an answer for a client that has gone

/**
 * Asks, and calls `on.start(start)`, `on.delta(text)`, `on.done(answer)`, `on.failure(problem)` and
 * `on.state("answering" | "reconnecting")`. Returns a function that stops listening; nothing is called after it.
 */
export function openStream(question, grounded, on) {
  const url = new URL("ai/stream", document.baseURI);
  url.search = new URLSearchParams({ prompt: question, ...(grounded ? {} : { grounded: "false" }) });
  const source = new EventSource(url);
  const seen = { answer: null, seq: -1 };
  let patience;
  let stopped = false;

  const close = () => {
    clearTimeout(patience);
    source.close();
  };
  const lose = async () => {
    close();
    const problem = await findCause(seen.answer !== null);
    if (!stopped) on.failure(problem);
  };
  const hear = (name, act, { last = false } = {}) =>
    source.addEventListener(name, (event) => {
      if (!isNew(event, seen)) return;
      if (last) close();
      act(JSON.parse(event.data));
    });

  hear("start", on.start);
  hear("message", ({ delta }) => on.delta(delta));
  hear("done", on.done, { last: true });
  hear("failure", on.failure, { last: true });
  source.onopen = () => {
    clearTimeout(patience);
    patience = undefined;
    if (seen.answer !== null) on.state("answering");
  };
  source.onerror = () => {
    // Before the first event a reconnect would ask a second time: leave that to the person who asks.
    if (source.readyState === EventSource.CLOSED || seen.answer === null) return lose();
    on.state("reconnecting");
    patience ??= setTimeout(lose, RECONNECT_MS_MAX);
  };
  return () => {
    stopped = true;
    close();
  };
}

// An id is {answer}.{seq}. A `start` of another answer begins anew; anything else of another answer, or heard before, is dropped.
function isNew(event, seen) {
  const [, answer, seq] = /^(.+)\.(\d+)$/.exec(event.lastEventId) ?? [];
  if (answer === undefined) return true;
  if (answer !== seen.answer) {
    if (event.type !== "start") return false;
    Object.assign(seen, { answer, seq: -1 });
  }
  if (Number(seq) <= seen.seq) return false;
  seen.seq = Number(seq);
  return true;
}
