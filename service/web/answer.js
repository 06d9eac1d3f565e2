// The card of one answer: its text as it arrives, its sources, its account. Every text from outside goes in by
// `textContent`, so that markup in an answer or a document stays text.

import { fillAll, label, languageOf, say } from "./text.js";

// A citation mark as a model may write it: [1], [1, 2], [1–3], 【1】.
const MARK = /([[［【][\s\d,、，;；\-–~〜]{1,40}[\]］】])/;
const UNFINISHED_MARK = /[[［【][\s\d,、，;；\-–~〜]{0,40}$/;

/** A card for `question`; `again` is called when the person wants to ask it once more. */
export function createAnswer(question, again) {
  const card = clone("answer-template");
  const part = (selector) => card.querySelector(selector);
  const text = part(".text");
  const sources = new Map(); // n → its <details>
  let held = ""; // the end of the text so far, while it may be the beginning of a citation mark

  write(part(".question"), question);
  part(".again").addEventListener("click", again);

  function begin({ context }) {
    text.replaceChildren();
    held = "";
    sources.clear();
    for (const passage of context) sources.set(passage.n, createSource(passage));
    placeSources(card, sources, []);
    setState("answering");
  }

  function append(delta) {
    const joined = held + delta;
    const settled = UNFINISHED_MARK.exec(joined)?.index ?? joined.length;
    held = joined.slice(settled);
    setText(joined.slice(0, settled));
  }

  function setText(piece) {
    for (const [run, n] of splitCitations(piece)) {
      const source = sources.get(Number(n));
      if (source) text.append(createCitation(run, n, source));
      else if (text.lastChild instanceof Text) text.lastChild.appendData(run);
      else text.append(run);
    }
    text.lang = languageOf(text.textContent);
  }

  function setState(state) {
    card.dataset.state = state;
    say(part(".state"), state);
  }

  function end(state) {
    setText(held);
    held = "";
    text.setAttribute("aria-busy", "false");
    setState(state);
  }

  function finish(answer) {
    end(answer.status);
    placeSources(card, sources, answer.sources.map((source) => source.n));
    showFacts(part("footer .facts"), answer);
  }

  function fail(problem) {
    end("failed");
    showProblem(part(".failure"), problem);
  }

  return { card, begin, append, setState, stop: () => end("stopped"), finish, fail };
}

// The runs of a text in order, each with the number it cites, if it does. A mark of one number is one run, brackets and
// all; in a mark of several, each number is a run of its own.
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
  button.addEventListener("click", () => openSource(source));
  return button;
}

function openSource(source) {
  for (let outer = source; outer; outer = outer.parentElement.closest("details")) outer.open = true;
  source.scrollIntoView({ block: "nearest" });
  source.firstElementChild.focus({ preventScroll: true });
  source.classList.remove("found");
  requestAnimationFrame(() => source.classList.add("found"));
}

function createSource({ n, title, text }) {
  const item = clone("source-template");
  item.querySelector(".n").textContent = n;
  write(item.querySelector(".title"), title);
  write(item.querySelector(".glimpse"), text.replace(/^#+ .*$/gm, "").trim().slice(0, 160)); // its headings say what the title says
  write(item.querySelector("blockquote"), text);
  return item.querySelector("details");
}

// Cited passages stand open to the eye; the rest of the context is folded away.
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

function showFacts(list, answer) {
  const { usage_source: source, estimated_cost: cost } = answer;
  const guessed = source === "estimated" ? [["estimated"]] : [];
  const facts = [
    ["model", [[null, answer.model]]],
    ["tokens", tokenFacts(answer, guessed)],
    ["cost", cost === null ? [["cost_unknown"]] : [[null, `$${cost}`], ...guessed]],
  ];
  if (answer.first_token_ms !== null) facts.push(["first_token", [["ms", { ms: answer.first_token_ms }]]]);
  facts.push(["total", [["ms", { ms: answer.response_time_ms }]]]);
  list.replaceChildren(...facts.map(([name, values]) => createFact(name, values)));
}

function tokenFacts(answer, guessed) {
  if (answer.usage_source === "none") return [["none"]];
  if (answer.prompt_tokens === null) return [["unknown"]];
  const facts = [["tokens_value", { prompt: answer.prompt_tokens, completion: answer.completion_tokens }], ...guessed];
  if (answer.cached_tokens) facts.push(["tokens_cached", { count: answer.cached_tokens }]);
  if (answer.reasoning_tokens) facts.push(["tokens_reasoning", { count: answer.reasoning_tokens }]);
  return facts;
}

// A value is [key into the words, gaps], or [null, text as it is].
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

function write(element, text) {
  element.textContent = text;
  element.lang = languageOf(text);
}

function clone(id) {
  return fillAll(document.getElementById(id).content.cloneNode(true)).firstElementChild;
}
