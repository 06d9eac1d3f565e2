// The drawer with the text of a document, opened at the sentence that supports an answer.

import { createMarkdown } from "./markdown.js";
import { fetchDocument, originalUrl } from "./service.js";
import { languageOf, say } from "./text.js";
import { describe } from "./uploads.js";

const CHARACTERS_MAX = 200_000; // shown at once
const BEFORE = 20_000; // of these before the sentence, in a longer text
const [BEGIN, END] = ["\uE000", "\uE001"]; // private characters around the sentence
const BLOCK_START = /^(?:\s*(?:#{1,6}|[-*+>]|\d+[.)])\s+)*/; // Markdown at the beginning of a block
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
  say(drawer.querySelector(".meta"), "document_meta", { characters: item.characters, chunks: item.chunks, date: item.created_at });
  if (item.original_bytes !== null) showOriginal(drawer.querySelector(".original"), item);
  const body = drawer.querySelector(".body");
  body.lang = languageOf(item.text.slice(0, 1000));
  const text = item.text.replace(/[\uE000\uE001]/g, "");
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

// The sentence is marked by two private characters, which survive the rendering.
function showText(body, item, text, { from, start, end }) {
  const to = from + CHARACTERS_MAX;
  const first = start + BLOCK_START.exec(text.slice(start, end))[0].length;
  const marked = first < end ? [text.slice(from, first), BEGIN, text.slice(first, end), END, text.slice(end, to)].join("") : text.slice(from, to);
  const pages = `${from > 0 ? "…" : ""}${marked}${to < text.length ? "…" : ""}`.split("\f"); // form feeds separate pages
  const firstPage = text.slice(0, from).split("\f").length;
  const render = isMarkdown(item) ? renderMarkdown : renderPlain;
  body.replaceChildren(...pages.flatMap((page, n) => (n === 0 ? [render(page)] : [createPageBreak(firstPage + n), render(page)])));
  markBetween(body);
}

// Readers of files write Markdown. A text is Markdown if its name says so, or if it has no file name and has headings.
const isMarkdown = ({ format, title, text }) =>
  format !== "text" || /\.(md|markdown)$/i.test(title) || (!/\.\w{1,5}$/.test(title) && /^#{1,6} \S/m.test(text));

function renderMarkdown(page) {
  const element = Object.assign(document.createElement("div"), { className: "text" });
  createMarkdown(element, () => {})(page);
  return element;
}

function renderPlain(page) {
  return Object.assign(document.createElement("div"), { className: "plain-text", textContent: page });
}

// Replaces the private characters by <mark> around the text between them, which may be in several elements.
function markBetween(body) {
  const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let inside = false;
  for (const node of nodes) {
    const pieces = node.data.split(/([\uE000\uE001])/);
    if (pieces.length === 1 && !inside) continue;
    const parts = [];
    for (const piece of pieces) {
      if (piece === BEGIN || piece === END) inside = piece === BEGIN;
      else if (inside && piece.trim()) parts.push(Object.assign(document.createElement("mark"), { textContent: piece }));
      else parts.push(piece);
    }
    node.replaceWith(...parts);
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
