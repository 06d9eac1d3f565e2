// The page: sends questions, shows one answer at a time, and lists earlier answers below it.

import { showAccount } from "./account.js";
import { createAnswer } from "./answer.js";
import { commitDeletions, listRemaining, wireDocuments } from "./documents.js";
import { wireDrawer } from "./drawer.js";
import { findExamples } from "./examples.js";
import { addHistory, clearHistory, listHistory } from "./history.js";
import { wireConnection } from "./notices.js";
import { fetchConversation, fetchModel } from "./service.js";
import { openStream } from "./stream.js";
import { wireSwitches } from "./switches.js";
import { language, languageOf, say, words } from "./text.js";

const EXTRACTIVE = "extractive"; // the built-in model, which quotes sentences
const QUESTION_CHARACTERS_MAX = 20_000;
const EXAMPLES_MS = 100;
const $ = (id) => document.getElementById(id);

let stopCurrent = null; // set while an answer is arriving
let queued = null; // the question to ask when it has ended: { question, grounded, thread }
let thread = null; // the conversation that the next question continues: { id, title }
let examplesTimer; // while the documents change
const model = fetchModel();

wireSwitches(showExamples);
wireConnection();
showAccount();
wireForm();
wireHistory();
wireDocuments({ onChange: showExamples });
wireDrawer();
model.then((name) => { $("quoting").hidden = name !== EXTRACTIVE; });
if (history.state?.id) show(history.state); // resume the answer of before a reload
else openLink();
addEventListener("hashchange", openLink);

function ask(question, { grounded = $("grounded").checked, follow = thread } = {}) {
  if (stopCurrent) enqueue({ question, grounded, follow });
  else show({ question, grounded, thread: follow });
}

// The next question continues the conversation of the last answer, unless the reader says otherwise.
function setThread(next) {
  thread = next;
  $("thread").hidden = thread === null;
  if (thread) say($("thread").querySelector("span"), "follow_up", { title: thread.title });
  $("question").dataset.hint = thread ? "follow_up_hint" : "ask_hint";
  $("question").placeholder = words($("question").dataset.hint);
}

// A link to a conversation, #c=ID: its last answer is shown, and the others below it.
async function openLink() {
  const [, id] = /^#c=([\w-]{1,64})$/.exec(location.hash) ?? [];
  if (!id || stopCurrent) return;
  let answers;
  try {
    answers = await fetchConversation(id);
  } catch (problem) {
    if (problem instanceof Error) throw problem;
    const answer = createAnswer("", true, { again: openLink });
    $("current").replaceChildren(answer.card);
    return answer.fail(problem);
  }
  for (const answer of answers) {
    const card = createAnswer(answer.prompt, answer.grounded, { again: () => ask(answer.prompt, { grounded: answer.grounded }) });
    keepEarlier();
    $("current").replaceChildren(card.card);
    card.replace(answer);
  }
  if (answers.length) setThread({ id, title: answers[0].prompt });
}

// One question can wait for the end of the current answer.
function enqueue(next) {
  if (queued) return flash($("queued"));
  queued = next;
  showQueue();
}

function showQueue() {
  $("queued").hidden = queued === null;
  $("queued").querySelector(".question").textContent = queued?.question ?? "";
  showButtons();
}

// Asks the waiting question. After a failure it returns to the box, since the next one would probably fail, too.
function dequeue(failed) {
  const next = queued;
  if (next === null || (failed && $("question").value)) return;
  queued = null;
  showQueue();
  if (failed) $("question").value = next.question;
  else ask(next.question, { ...next, follow: next.follow && thread });
  showButtons();
}

function flash(element) {
  element.classList.remove("flash");
  requestAnimationFrame(() => element.classList.add("flash"));
}

function show({ question, grounded, id, thread: continued = null }) {
  const again = () => ask(question, { grounded, follow: continued });
  const answer = createAnswer(question, grounded, { again, ended: addHistory, continued });
  keepEarlier();
  $("current").replaceChildren(answer.card);
  answer.setState(grounded ? "waiting" : "waiting_free");

  const stop = openStream({ question, grounded, id, conversation: continued?.id, ready: commitDeletions() }, {
    begun: (id) => history.replaceState({ question, grounded, id, thread: continued }, ""),
    start: answer.begin,
    delta: answer.append,
    state: answer.setState,
    done: (account) => settle(() => finish(answer.finish, account)),
    whole: (found) => settle(() => finish(answer.replace, found)),
    failure: (problem) => settle(() => answer.fail(problem), true),
  });
  setBusy(stop);
  if (answer.card.getBoundingClientRect().top > innerHeight * 0.55) answer.card.scrollIntoView(); // a small screen

  // Questions after an answer continue its conversation; those after a refusal only if they did before.
  function finish(act, account) {
    act(account);
    const conversation = account?.conversation_id;
    const continues = account?.status === "completed" && conversation;
    setThread(continues ? { id: conversation, title: continued?.title ?? question } : continued);
  }
}

function settle(act, failed = false) {
  history.replaceState(null, "");
  act();
  setBusy(null);
  dequeue(failed);
}

function setBusy(stop) {
  const held = document.activeElement === $(stop ? "send" : "stop");
  stopCurrent = stop;
  showButtons();
  if (held) $(stop ? "stop" : "send").focus(); // the button that had the focus is gone
}

// While an answer arrives, a question in the box can be queued.
function showButtons() {
  const busy = Boolean(stopCurrent);
  $("stop").hidden = !busy;
  $("send").hidden = busy && (queued !== null || $("question").value.trim() === "");
  say($("send"), busy ? "send_next" : "send");
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
        const card = createAnswer(question, grounded, { again: () => ask(question, { grounded, follow: null }) });
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
    if (question === "") return;
    if (stopCurrent && queued) return flash($("queued"));
    box.value = "";
    if (matchMedia("(pointer: coarse)").matches) box.blur(); // the on-screen keyboard would cover the answer
    ask(question);
  });
  box.addEventListener("input", () => {
    const long = box.value.length > QUESTION_CHARACTERS_MAX;
    box.setCustomValidity(long ? words("question_long", { max: QUESTION_CHARACTERS_MAX }) : "");
    showButtons();
  });
  box.addEventListener("keydown", (event) => {
    // While an input method composes, Enter selects characters. Safari reports this only by keyCode 229.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  $("leave-thread").addEventListener("click", () => {
    setThread(null);
    box.focus();
  });
  $("unqueue").addEventListener("click", () => {
    if (!box.value) box.value = queued.question;
    queued = null;
    showQueue();
    box.focus();
  });
  $("stop").addEventListener("click", () => stopCurrent?.());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && !$("drawer").open) stopCurrent?.();
  });
}

// Waits for the end of a change of many documents; the last call counts.
function showExamples() {
  clearTimeout(examplesTimer);
  if (listRemaining().length === 0) return $("examples").replaceChildren();
  examplesTimer = setTimeout(async () => {
    const timer = examplesTimer;
    const questions = await findExamples(listRemaining(), { language: language(), quotes: (await model) === EXTRACTIVE });
    if (timer === examplesTimer) $("examples").replaceChildren(...questions.map(createExample));
  }, EXAMPLES_MS);
}

function createExample(question) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: question, lang: languageOf(question) });
  button.addEventListener("click", () => ask(question, { follow: null }));
  item.append(button);
  return item;
}
