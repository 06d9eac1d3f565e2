// The drawer with the text of a document, opened at the sentence that supports an answer.

import { encloseMark, isMarkdown, placeMarks, renderText } from "./passage.js";
import { fetchDocument, originalUrl } from "./service.js";
import { describe, languageOf, say } from "./text.js";

const CHARACTERS_MAX = 200_000; // shown at once
const BEFORE = 20_000; // of these before the sentence, in a longer text
const $ = (id) => document.getElementById(id);

/** Opens a document; with a passage of it and its supporting sentence, at that place. */
export async function openDocument(id, { passage = "", sentence = "" } = {}) {
  const drawer = $("drawer");
  drawer.querySelector("h2").textContent = "";
  drawer.querySelector(".original").hidden = true;
  say(drawer.querySelector(".meta"), "opening");
  drawer.querySelector(".body").replaceChildren();
  if (!drawer.open) drawer.showModal();
  try {
    fill(drawer, await fetchDocument(id), passage, sentence);
  } catch (problem) {
    if (problem instanceof Error) throw problem;
    const meta = drawer.querySelector(".meta");
    if (problem.status === 404) return say(meta, "document_gone");
    if (problem.key) return say(meta, problem.key);
    delete meta.dataset.text;
    meta.textContent = describe(problem);
  }
}

/** Closes the drawer with its button, and with a click beside it. */
export function wireDrawer() {
  const drawer = $("drawer");
  $("drawer-close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", ({ target }) => target === drawer && drawer.close());
}

function fill(drawer, item, passage, sentence) {
  const heading = drawer.querySelector("h2");
  heading.textContent = item.title;
  heading.lang = languageOf(item.title);
  say(drawer.querySelector(".meta"), "document_meta", { characters: item.characters, date: item.created_at });
  if (item.original_bytes !== null) showOriginal(drawer.querySelector(".original"), item);
  const body = drawer.querySelector(".body");
  body.lang = languageOf(item.text.slice(0, 1000));
  const { text } = item;
  const [start, end] = find(text, sentence, passage);
  const from = text.length > CHARACTERS_MAX ? Math.max(0, start - BEFORE) : 0;
  showText(body, item, text, { from, start, end });
  body.querySelector("mark")?.scrollIntoView({ block: "center" });
}

// The service sends the file as an attachment, so that the browser does not open it as a page.
function showOriginal(line, item) {
  line.firstElementChild.href = originalUrl(item.document_id);
  say(line.firstElementChild, "download_original", { size: item.original_bytes });
  line.hidden = false;
}

function showText(body, item, text, { from, start, end }) {
  const to = from + CHARACTERS_MAX;
  const [begin, finish] = [start, Math.min(end, to)].map((place) => place - from);
  const marked = encloseMark(text.slice(from, to), [begin, finish]);
  const pages = `${from > 0 ? "…" : ""}${marked}${to < text.length ? "…" : ""}`.split("\f"); // form feeds separate pages
  const firstPage = text.slice(0, from).split("\f").length;
  const render = (page) => renderText(page, isMarkdown(item));
  body.replaceChildren(...pages.flatMap((page, n) => (n === 0 ? [render(page)] : [createPageBreak(firstPage + n), render(page)])));
  placeMarks(body);
}

function createPageBreak(page) {
  const element = say(document.createElement("span"), "page", { page });
  element.className = "page-break";
  return element;
}

// The place of the sentence in the text, [start, end): in its passage if the text contains that. White space may differ.
function find(text, sentence, passage) {
  const place = search(text, passage, 0) ?? [0, 0];
  return search(text, sentence, place[0]) ?? search(text, sentence, 0) ?? [place[0], place[0]];
}

function search(text, words, from) {
  const parts = words.trim().split(/\s+/).filter(Boolean);
  if (parts.length === 0) return null;
  const pattern = new RegExp(parts.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+"), "g");
  pattern.lastIndex = from;
  const match = pattern.exec(text);
  return match && [match.index, match.index + match[0].length];
}
