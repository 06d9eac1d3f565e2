// The card of one answer: text, sources, usage. The text is markdown and is rendered by `markdown.js`;
// all other external text is set as `textContent`, so that markup stays text.

import { showCard, hideCard } from "./citation_card.js";
import { createMarkdown } from "./markdown.js";
import { clone, createSource, isUnverified, markQuoted, markSentence, markUnverified, openSource, placeSources, showNearest, write } from "./sources.js";
import { label, languageOf, say } from "./text.js";

// A citation mark as a model may write it: [1], [1, 2], [1–3], 【1】.
const MARK = /([[［【][\s\d,、，;；\-–~〜]{1,40}[\]］】])/;
const CARD_MS = 150; // for which the mouse rests on a mark
const RUNNING = new Set(["waiting", "waiting_free", "answering", "reconnecting", "stopping"]);
const UNFINISHED_MARK = /[[［【][\s\d,、，;；\-–~〜]{0,40}$/;

/**
 * Creates a card for `question`. `again` is called to ask the question again, `ended` with the data for the history
 * when the answer is complete. `continued` is the conversation that the question continues, if any: { id, title }.
 */
export function createAnswer(question, grounded, { again, ended = () => {}, continued = null } = {}) {
  hideCard(); // of a citation in the answer that this one replaces
  const card = clone("answer-template");
  const part = (selector) => card.querySelector(selector);
  const text = part(".text");
  const sources = new Map(); // n → its <details>
  const show = createMarkdown(text, (block) => dress(block, sources));
  let whole = ""; // the text so far
  let frame = 0;
  let cuts = 0; // number of lost connections
  const elapsed = createTimer(part(".elapsed"));

  write(part(".question"), question);
  part(".again").addEventListener("click", () => again?.());
  if (continued) say(part(".continues"), "follow_up", { title: continued.title }).hidden = false;
  wireTools(card, curlOf(question, grounded, continued?.id), () => whole);
  wireFold(part(".question"), part(".unfold"));

  function begin({ context, searched_for: corrected }) {
    addSources(context);
    showCorrection(part(".searched-for"), corrected);
    placeSources(card, sources, []);
    setState("answering");
  }

  function addSources(passages) {
    for (const passage of passages) if (!sources.has(passage.n)) sources.set(passage.n, createSource(passage));
  }

  function append(delta) {
    whole += delta;
    frame ||= requestAnimationFrame(draw); // once per frame, regardless of the number of events
  }

  function draw() {
    cancelAnimationFrame(frame);
    frame = 0;
    const busy = text.getAttribute("aria-busy") === "true";
    show(busy ? whole.slice(0, UNFINISHED_MARK.exec(whole)?.index) : whole); // an incomplete mark is hidden
    text.lang = languageOf(whole);
  }

  function setState(state) {
    if (state === "answering" && card.dataset.state === "reconnecting") cuts += 1;
    card.dataset.state = state;
    say(part(".state"), state);
    elapsed.run(RUNNING.has(state));
  }

  function end(state) {
    text.setAttribute("aria-busy", "false");
    draw();
    setState(state);
    part(".tools").hidden = false;
    part(".copy-text").hidden = whole === "";
  }

  function finish(answer) {
    addSources(answer.sources); // for an answer from the log or the history, these are all sources
    end(answer.status);
    for (const { n, sentence, supported } of answer.sources) {
      if (sentence) markSentence(sources.get(n), sentence);
      if (supported === false) markUnverified(sources.get(n));
    }
    for (const button of text.querySelectorAll(".cite")) nameCitation(button, sources.get(Number(button.dataset.n)));
    placeSources(card, sources, answer.sources.map((source) => source.n));
    showCorrection(part(".searched-for"), answer.searched_for);
    showNearest(part(".nearest"), answer.nearest ?? []);
    showFacts(part("footer .facts"), answer, cuts);
    if (answer.conversation_id) wireLink(part(".copy-link"), answer.conversation_id);
    const { prompt, response, ...account } = answer;
    ended({ question, grounded, text: whole, answer: account });
  }

  // Replaces the text by the answer object; null: stopped, with an unknown end.
  function replace(answer) {
    if (answer === null) return end("stopped");
    whole = answer.response ?? whole;
    finish(answer);
  }

  function fail(problem) {
    end("failed");
    showProblem(part(".failure"), problem);
  }

  return { card, begin, append, setState, replace, finish, fail };
}

// Turns the citation marks of a rendered block into buttons that open their source, and adds a button to code.
function dress(block, sources) {
  for (const pre of block.querySelectorAll("pre")) pre.append(createCopyButton(pre.textContent));
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) if (MARK.test(walker.currentNode.data) && !walker.currentNode.parentElement?.closest("code")) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const runs = splitCitations(node.data).map(([run, n]) => (sources.has(Number(n)) ? createCitation(run, n, sources.get(Number(n))) : run));
    node.replaceWith(...runs);
  }
}

// Splits a text into runs, each with the number that it cites, if any. A mark with one number is one run including its
// brackets; in a mark with several, each number is a separate run.
function splitCitations(text) {
  const runs = text.split(MARK).flatMap((run) => {
    if (!MARK.test(run)) return [[run]];
    const parts = run.split(/(\d+)/); // every second one is a number
    return parts.length === 3 ? [[run, parts[1]]] : parts.map((part) => [part, part]);
  });
  return runs.filter(([run]) => run);
}

function createCitation(run, n, source) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "cite";
  button.textContent = run;
  button.dataset.n = n;
  nameCitation(button, source);
  const mark = () => markQuoted(source, claimBefore(button));
  button.addEventListener("click", () => {
    hideCard();
    mark();
    openSource(source);
  });
  wireCard(button, () => {
    mark();
    showCard(button, source);
  });
  return button;
}

function nameCitation(button, source) {
  const title = source.querySelector(".title").textContent;
  label(button, isUnverified(source) ? "source_unverified" : "source", { n: button.dataset.n, title });
  button.classList.toggle("unverified", isUnverified(source));
}

// The card appears when a mouse rests on the mark, or with the focus of the keyboard.
function wireCard(button, show) {
  let timer;
  button.addEventListener("pointerenter", ({ pointerType }) => {
    if (pointerType === "mouse") timer = setTimeout(show, CARD_MS);
  });
  button.addEventListener("focus", () => button.matches(":focus-visible") && show());
  for (const name of ["pointerleave", "blur"]) {
    button.addEventListener(name, () => {
      clearTimeout(timer);
      hideCard();
    });
  }
  return button;
}

// Returns the text that a mark supports: its block from the previous mark or sentence to the mark.
function claimBefore(button) {
  const range = document.createRange();
  range.setStart(button.closest("p, li, td, th, blockquote, h3, h4, h5, h6") ?? button.parentElement, 0);
  range.setEndBefore(button);
  const said = range.toString().split(MARK).filter((run) => run.trim() && !MARK.test(run)).at(-1) ?? "";
  return said.trim().split(/(?<=[。！？])|(?<=[.!?])\s+/).filter((sentence) => sentence.trim()).at(-1)?.trim() ?? "";
}

// The question with the spelling of the documents, if its words were corrected.
function showCorrection(line, question) {
  if (question) say(line, "searched_for", { question });
  line.hidden = !question;
}

function showFacts(list, answer, cuts) {
  const { usage_source: source, estimated_cost: cost } = answer;
  const guessed = source === "estimated" ? [["estimated"]] : [];
  const facts = [
    ["model", [[null, answer.model]]],
    ["tokens", tokenFacts(answer, guessed)],
    ["cost", cost === null ? [["cost_unknown"]] : [[null, `$${cost}`], ...guessed]],
  ];
  if (answer.charge !== undefined) facts.push(["charge", [[null, `$${answer.charge}`]]]);
  if (answer.first_token_ms !== null) facts.push(["first_token", [formatTime(answer.first_token_ms)]]);
  facts.push(["total", [formatTime(answer.response_time_ms)]]);
  if (cuts) facts.push(["resumed", [["times", { count: cuts }]]]);
  list.replaceChildren(...facts.map(([name, values]) => createFact(name, values)));
}

const formatTime = (ms) => (ms < 1000 ? ["ms", { ms }] : ["seconds", { seconds: Math.round(ms / 100) / 10 }]);

function tokenFacts(answer, guessed) {
  if (answer.usage_source === "none") return [["none"]];
  if (answer.prompt_tokens === null) return [["unknown"]];
  const facts = [["tokens_value", { prompt: answer.prompt_tokens, completion: answer.completion_tokens }], ...guessed];
  if (answer.cached_tokens) facts.push(["tokens_cached", { count: answer.cached_tokens }]);
  if (answer.reasoning_tokens) facts.push(["tokens_reasoning", { count: answer.reasoning_tokens }]);
  return facts;
}

// A value is [key of a text, values], or [null, literal text].
function createFact(name, values) {
  const pair = document.createElement("div");
  pair.className = name;
  pair.append(say(document.createElement("dt"), name));
  for (const [key, given] of values) {
    const value = document.createElement("dd");
    if (key) say(value, key, given);
    else value.textContent = given;
    pair.append(value);
  }
  return pair;
}

function showProblem(panel, problem) {
  const [title, detail] = [panel.querySelector("h3"), panel.querySelector(".detail")];
  if (problem.key) {
    say(title, problem.key);
    say(detail, `${problem.key}_detail`);
  } else {
    write(title, problem.title ?? "");
    write(detail, problem.detail ?? "");
  }
  const remedy = panel.querySelector(".remedy");
  remedy.hidden = problem.code !== "out_of_credit";
  remedy.replaceChildren(...(remedy.hidden ? [] : [createCreditLink()]));
  const facts = [["http_status", problem.status], ["code", problem.code], ["request_id", problem.request_id]];
  panel.querySelector(".facts").replaceChildren(
    ...facts.filter(([, value]) => value).map(([name, value]) => createFact(name, [[null, String(value)]])),
  );
  panel.hidden = false;
}

function createCreditLink() {
  const link = document.createElement("a");
  link.href = "account/billing";
  return say(link, "add_credit");
}

// A long question is folded; the button unfolds it.
function wireFold(question, button) {
  new ResizeObserver(() => {
    const folded = button.getAttribute("aria-expanded") === "false";
    button.hidden = folded && question.scrollHeight <= question.clientHeight + 2;
  }).observe(question);
  button.addEventListener("click", () => {
    const open = question.classList.toggle("unfolded");
    say(button, open ? "show_less" : "show_all").setAttribute("aria-expanded", open);
  });
}

// Counts the seconds of waiting, from the second one.
function createTimer(element) {
  let interval = null;
  return {
    run(running) {
      if (running && interval === null) {
        const began = performance.now();
        interval = setInterval(() => {
          const seconds = Math.round((performance.now() - began) / 1000);
          say(element, "elapsed", { seconds }).hidden = seconds < 2;
        }, 1000);
      } else if (!running) {
        clearInterval(interval);
        interval = null;
        element.hidden = true;
      }
    },
  };
}

function createCopyButton(text) {
  const button = say(document.createElement("button"), "copy_code");
  button.type = "button";
  button.className = "quiet copy-code";
  button.addEventListener("click", () => copyFrom(button, text));
  return button;
}

async function copyFrom(button, text) {
  const key = button.dataset.text;
  await copy(text);
  say(button, "copied");
  setTimeout(() => say(button, key), 1500);
}

// A link to the conversation, for those who may read it.
function wireLink(button, id) {
  button.hidden = false;
  button.onclick = () => button.dataset.text !== "copied" && copyFrom(button, new URL(`#c=${id}`, document.baseURI).href);
}

function wireTools(card, command, text) {
  const wire = (selector, content) => {
    const button = card.querySelector(selector);
    button.addEventListener("click", async () => {
      const key = button.dataset.text;
      if (key === "copied") return;
      await copyFrom(button, content());
    });
  };
  wire(".copy-text", text);
  wire(".copy-curl", () => command);
}

/** Returns a shell command that asks the same question. */
export function curlOf(question, grounded, conversation) {
  const follow = conversation ? { conversation_id: conversation } : {};
  const body = JSON.stringify({ prompt: question, ...(grounded ? {} : { grounded: false }), ...follow });
  const quote = (word) => `'${word.replaceAll("'", "'\\''")}'`;
  return `curl -s ${quote(new URL("ai/test", document.baseURI).href)} -H 'Content-Type: application/json' -d ${quote(body)}`;
}

// The clipboard API requires HTTPS or localhost; other pages use the older command.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
