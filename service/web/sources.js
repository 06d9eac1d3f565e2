// The sources of an answer: passages with the sentence that supports it, and whether that was verified.

import { openDocument } from "./drawer.js";
import { encloseMark, isMarkdown, placeMarks, readMarked, renderText } from "./passage.js";
import { fillAll, languageOf, say } from "./text.js";

const GLIMPSE_CHARACTERS = 160;
const passages = new WeakMap(); // the <details> of a source → { title, text, sentence: [start, end) or null }

/** Creates the <details> of a passage, in a list item. */
export function createSource({ n, title, text, page, document_id: id }) {
  const source = clone("source-template").querySelector("details");
  passages.set(source, { title, text, sentence: null });
  source.querySelector(".n").textContent = n;
  write(source.querySelector(".title"), title);
  if (page) say(source.querySelector(".page"), "page", { page });
  showPassage(source);
  source.querySelector(".open-document").addEventListener("click", () => {
    const { sentence } = passages.get(source);
    openDocument(id, { passage: text, sentence: sentence ? text.slice(...sentence) : "" });
  });
  return source;
}

// The glimpse is the marked sentence; without one, the beginning without its headings, which repeat the title.
function showPassage(source) {
  const { title, text, sentence } = passages.get(source);
  const quote = source.querySelector("blockquote");
  const marked = encloseMark(text, sentence ?? [0, 0]).replaceAll("\f", "\n\n"); // form feeds separate pages
  quote.replaceChildren(renderText(marked, isMarkdown({ title, text })));
  quote.lang = languageOf(text);
  placeMarks(quote);
  const blocks = [...quote.querySelectorAll(".rendered > :not(h3, h4, h5, h6), .plain-text")];
  const begin = blocks.map((block) => block.textContent).join(" ").slice(0, GLIMPSE_CHARACTERS);
  write(source.querySelector(".glimpse"), readMarked(quote) || begin);
}

/** Marks the sentence that supports an answer, [start, end) in code points, as the service counts. */
export function markSentence(source, [start, end]) {
  const passage = passages.get(source);
  const characters = [...passage.text];
  const units = (count) => characters.slice(0, count).join("").length;
  passage.sentence = [units(start), units(end)];
  showPassage(source);
}

/** Marks a claim for which the service gave no sentence, if the passage contains it verbatim. */
export function markQuoted(source, claim) {
  const passage = passages.get(source);
  const at = claim.length > 3 ? passage.text.indexOf(claim) : -1;
  if (at < 0 || passage.sentence) return;
  passage.sentence = [at, at + claim.length];
  showPassage(source);
}

/** Says that a claim which cites the source has words that are not in it. */
export function markUnverified(source) {
  source.dataset.unverified = "";
  source.querySelector(".unverified").hidden = false;
  source.querySelector(".why-unverified").hidden = false;
}

export const isUnverified = (source) => "unverified" in source.dataset;

/** Opens a source, and what it is folded in, at its sentence. */
export function openSource(source) {
  for (let outer = source; outer; outer = outer.parentElement.closest("details")) outer.open = true;
  const mark = source.querySelector("mark");
  const quote = source.querySelector("blockquote");
  if (mark) quote.scrollTop += mark.getBoundingClientRect().top - quote.getBoundingClientRect().top - quote.clientHeight / 3;
  source.scrollIntoView({ block: "nearest" });
  source.firstElementChild.focus({ preventScroll: true });
  source.classList.remove("found");
  requestAnimationFrame(() => source.classList.add("found"));
}

/** Shows the passages nearest to a refused question: each with its best sentence, which is no answer. */
export function showNearest(section, nearest) {
  const items = nearest.map((passage) => {
    const source = createSource(passage);
    if (passage.sentence) markSentence(source, passage.sentence);
    return source.parentElement;
  });
  section.querySelector("ol").replaceChildren(...items);
  section.hidden = items.length === 0;
}

/** Lists cited passages openly; the rest of the context is folded. `sources`: n → its <details>. */
export function placeSources(card, sources, cited) {
  const others = [...sources.keys()].filter((n) => !cited.includes(n));
  const items = (numbers) => numbers.filter((n) => sources.has(n)).map((n) => sources.get(n).parentElement);
  card.querySelector(".sources").hidden = sources.size === 0;
  say(card.querySelector(".cited-title"), "sources").hidden = cited.length === 0;
  card.querySelector(".cited").replaceChildren(...items(cited));
  card.querySelector(".others").hidden = others.length === 0;
  card.querySelector(".others ol").replaceChildren(...items(others));
  say(card.querySelector(".others summary"), cited.length ? "others" : "read", { count: others.length });
}

/** Sets an external text, in which markup stays text. */
export function write(element, text) {
  element.textContent = text;
  element.lang = languageOf(text);
}

/** Returns the element of a template, in the language of the page. */
export function clone(id) {
  return fillAll(document.getElementById(id).content.cloneNode(true)).firstElementChild;
}
