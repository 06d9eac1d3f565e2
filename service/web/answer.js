// The card of one answer: text, sources, usage. The text is markdown and is rendered by `markdown.js`;
// all other external text is set as `textContent`, so that markup stays text.

import { showCard, hideCard } from "./citation_card.js";
import { openDocument } from "./drawer.js";
import { createMarkdown } from "./markdown.js";
import { fillAll, label, languageOf, say } from "./text.js";

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
  }

  function finish(answer) {
    addSources(answer.sources); // for an answer from the log or the history, these are all sources
    end(answer.status);
    for (const { n, sentence } of answer.sources) if (sentence) markSentence(sources.get(n), sentence);
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
  label(button, "source", { n, title: source.querySelector(".title").textContent });
  const mark = () => source.querySelector("mark") || markQuoted(source, claimBefore(button));
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

// Marks the sentence that supports an answer, [start, end) in characters of the passage.
function markSentence(source, [start, end]) {
  const quote = source.querySelector("blockquote");
  const characters = [...quote.textContent]; // code points, as the service counts
  const mark = document.createElement("mark");
  mark.textContent = characters.slice(start, end).join("");
  if (!mark.textContent) return;
  write(source.querySelector(".glimpse"), mark.textContent);
  quote.replaceChildren(characters.slice(0, start).join(""), mark, characters.slice(end).join(""));
}

// Without a range from the service, a sentence is marked only if the passage contains it verbatim.
function markQuoted(source, claim) {
  const passage = source.querySelector("blockquote").textContent;
  const at = claim.length > 3 ? passage.indexOf(claim) : -1;
  if (at >= 0) markSentence(source, [[...passage.slice(0, at)].length, [...passage.slice(0, at + claim.length)].length]);
}

function openSource(source) {
  for (let outer = source; outer; outer = outer.parentElement.closest("details")) outer.open = true;
  const mark = source.querySelector("mark");
  if (mark) mark.parentElement.scrollTop = mark.offsetTop - mark.parentElement.clientHeight / 3; // long passages scroll
  source.scrollIntoView({ block: "nearest" });
  source.firstElementChild.focus({ preventScroll: true });
  source.classList.remove("found");
  requestAnimationFrame(() => source.classList.add("found"));
}

function createSource({ n, title, text, page, document_id: id }) {
  const item = clone("source-template");
  item.querySelector(".n").textContent = n;
  write(item.querySelector(".title"), title);
  if (page) say(item.querySelector(".page"), "page", { page });
  write(item.querySelector(".glimpse"), text.replace(/^#+ .*$/gm, "").trim().slice(0, 160)); // headings repeat the title
  write(item.querySelector("blockquote"), text);
  item.querySelector(".open-document").addEventListener("click", () => {
    openDocument(id, { passage: text, sentence: item.querySelector("mark")?.textContent ?? "" });
  });
  return item.querySelector("details");
}

// The question with the spelling of the documents, if its words were corrected.
function showCorrection(line, question) {
  if (question) say(line, "searched_for", { question });
  line.hidden = !question;
}

// The passages nearest to a refused question: each shows its best sentence, which is no answer.
function showNearest(section, passages) {
  const items = passages.map((passage) => {
    const source = createSource(passage);
    if (passage.sentence) markSentence(source, passage.sentence);
    return source.parentElement;
  });
  section.querySelector("ol").replaceChildren(...items);
  section.hidden = items.length === 0;
}

// Cited passages are listed openly; the rest of the context is folded.
function placeSources(card, sources, cited) {
  const others = [...sources.keys()].filter((n) => !cited.includes(n));
  const items = (numbers) => numbers.filter((n) => sources.has(n)).map((n) => sources.get(n).parentElement);
  card.querySelector(".sources").hidden = sources.size === 0;
  say(card.querySelector(".cited-title"), "sources").hidden = cited.length === 0;
  card.querySelector(".cited").replaceChildren(...items(cited));
  card.querySelector(".others").hidden = others.length === 0;
  card.querySelector(".others ol").replaceChildren(...items(others));
  say(card.querySelector(".others summary"), cited.length ? "others" : "read", { count: others.length });
}

function showFacts(list, answer, cuts) {
  const { usage_source: source, estimated_cost: cost } = answer;
  const guessed = source === "estimated" ? [["estimated"]] : [];
  const facts = [
    ["model", [[null, answer.model]]],
    ["tokens", tokenFacts(answer, guessed)],
    ["cost", cost === null ? [["cost_unknown"]] : [[null, `$${cost}`], ...guessed]],
  ];
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
  const facts = [["http_status", problem.status], ["code", problem.code], ["request_id", problem.request_id]];
  panel.querySelector(".facts").replaceChildren(
    ...facts.filter(([, value]) => value).map(([name, value]) => createFact(name, [[null, String(value)]])),
  );
  panel.hidden = false;
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

function write(element, text) {
  element.textContent = text;
  element.lang = languageOf(text);
}

function clone(id) {
  return fillAll(document.getElementById(id).content.cloneNode(true)).firstElementChild;
}
