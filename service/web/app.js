// The page: sends questions, shows one answer at a time, and lists earlier answers below it.

import { showAccount } from "./account.js";
import { createAnswer } from "./answer.js";
import { wireDocuments } from "./documents.js";
import { addHistory, clearHistory, listHistory } from "./history.js";
import { wireConnection } from "./notices.js";
import { fetchModel } from "./service.js";
import { openStream } from "./stream.js";
import { wireSwitches } from "./switches.js";
import { EXAMPLES, language, languageOf, say, words } from "./text.js";

const EXTRACTIVE = "extractive"; // the built-in model, which quotes sentences
const QUESTION_CHARACTERS_MAX = 20_000;
const $ = (id) => document.getElementById(id);

let stopCurrent = null; // set while an answer is arriving

wireSwitches(showExamples);
wireConnection();
showAccount();
wireForm();
wireHistory();
wireDocuments();
fetchModel().then((model) => { $("quoting").hidden = model !== EXTRACTIVE; });
if (history.state?.id) show(history.state); // resume the answer of before a reload

function ask(question, grounded = $("grounded").checked) {
  if (!stopCurrent) show({ question, grounded });
}

function show({ question, grounded, id }) {
  const answer = createAnswer(question, grounded, { again: () => ask(question, grounded), ended: addHistory });
  keepEarlier();
  $("current").replaceChildren(answer.card);
  answer.setState(grounded ? "waiting" : "waiting_free");

  const stop = openStream({ question, grounded, id }, {
    begun: (id) => history.replaceState({ question, grounded, id }, ""),
    start: answer.begin,
    delta: answer.append,
    state: answer.setState,
    done: (account) => settle(() => answer.finish(account)),
    whole: (found) => settle(() => answer.replace(found)),
    failure: (problem) => settle(() => answer.fail(problem)),
  });
  setBusy(stop);
  if (answer.card.getBoundingClientRect().top > innerHeight * 0.55) answer.card.scrollIntoView(); // a small screen
}

function settle(act) {
  history.replaceState(null, "");
  act();
  setBusy(null);
}

function setBusy(stop) {
  const held = document.activeElement === $(stop ? "send" : "stop");
  stopCurrent = stop;
  $("send").hidden = Boolean(stop);
  $("stop").hidden = !stop;
  for (const button of document.querySelectorAll(".examples button, .again")) button.disabled = Boolean(stop);
  if (held) $(stop ? "stop" : "send").focus(); // the button that had the focus is gone
}

// Moves the current answer into the list of earlier ones, folded.
function keepEarlier() {
  const card = $("current").firstElementChild;
  if (card) addEarlier(card.querySelector(".question").textContent, card.dataset.state, (fold) => fold.append(card));
}

// Creates a fold of the list; `open` puts the card into it.
function addEarlier(question, state, open) {
  const fold = document.createElement("details");
  const summary = document.createElement("summary");
  const shown = say(document.createElement("span"), state);
  shown.className = "state";
  summary.append(Object.assign(document.createElement("span"), { textContent: question, lang: languageOf(question) }), shown);
  fold.dataset.state = state;
  fold.append(summary);
  open(fold);
  $("earlier-list").prepend(fold);
  $("earlier").hidden = false;
}

// The history of this browser: cards are built when opened.
function wireHistory() {
  for (const { question, grounded, text, answer } of listHistory().reverse()) {
    addEarlier(question, answer.status, (fold) => {
      fold.addEventListener("toggle", () => {
        const card = createAnswer(question, grounded, { again: () => ask(question, grounded) });
        card.replace({ ...answer, response: text });
        fold.append(card.card);
      }, { once: true });
    });
  }
  $("forget").addEventListener("click", () => {
    clearHistory();
    $("earlier-list").replaceChildren();
    $("earlier").hidden = true;
    $("question").focus();
  });
}

function wireForm() {
  const box = $("question");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = box.value.trim();
    if (stopCurrent || question === "") return;
    box.value = "";
    if (matchMedia("(pointer: coarse)").matches) box.blur(); // the on-screen keyboard would cover the answer
    ask(question);
  });
  box.addEventListener("input", () => {
    const long = box.value.length > QUESTION_CHARACTERS_MAX;
    box.setCustomValidity(long ? words("question_long", { max: QUESTION_CHARACTERS_MAX }) : "");
  });
  box.addEventListener("keydown", (event) => {
    // While an input method composes, Enter selects characters. Safari reports this only by keyCode 229.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!stopCurrent) $("ask").requestSubmit();
  });
  $("stop").addEventListener("click", () => stopCurrent?.());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) stopCurrent?.();
  });
}

function showExamples() {
  $("examples").replaceChildren(...EXAMPLES[language()].map(createExample));
}

function createExample(question) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: question, disabled: Boolean(stopCurrent) });
  button.addEventListener("click", () => ask(question));
  item.append(button);
  return item;
}
