// The drawer with the text of a document, opened at the sentence that supports an answer.

import { fetchDocument } from "./service.js";
import { languageOf, say } from "./text.js";
import { describe } from "./uploads.js";

const CHARACTERS_MAX = 200_000; // shown at once
const BEFORE = 20_000; // of these before the sentence, in a longer text
const $ = (id) => document.getElementById(id);

/** Opens a document; with a passage of it and its supporting sentence, at that place. */
export async function openDocument(id, { passage = "", sentence = "" } = {}) {
  const drawer = $("drawer");
  drawer.querySelector("h2").textContent = "";
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
  say(drawer.querySelector(".meta"), "document_meta", { characters: item.characters, chunks: item.chunks, date: item.created_at });
  const body = drawer.querySelector(".body");
  body.lang = languageOf(item.text.slice(0, 1000));
  const [start, end] = find(item.text, sentence, passage);
  const from = item.text.length > CHARACTERS_MAX ? Math.max(0, start - BEFORE) : 0;
  showText(body, item.text, { from, start, end });
  body.querySelector("mark")?.scrollIntoView({ block: "center" });
}

function showText(body, text, { from, start, end }) {
  const to = from + CHARACTERS_MAX;
  const mark = Object.assign(document.createElement("mark"), { textContent: text.slice(start, end) });
  const parts = start < end ? [text.slice(from, start), mark, text.slice(end, to)] : [text.slice(from, to)];
  if (from > 0) parts.unshift("…");
  if (to < text.length) parts.push("…");
  let page = text.slice(0, from).split("\f").length;
  body.replaceChildren(...parts.flatMap((part) => (typeof part === "string" ? splitPages(part) : [part])));

  // Form feeds separate pages.
  function splitPages(part) {
    return part.split("\f").flatMap((piece, n) => (n === 0 ? [piece] : [createPageBreak((page += 1)), piece]));
  }
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
