// Texts of documents and passages, as Markdown or as they are, with the sentence that supports an answer marked.

import { createMarkdown } from "./markdown.js";

const [BEGIN, END] = ["\uE000", "\uE001"]; // private characters around the sentence, which survive the rendering
const PRIVATE = /[\uE000\uE001]/g;
// Markdown at the beginning of a block, and at its end: a mark around it would make it text.
const BLOCK_START = /^(?:\s*(?:#{1,6}\s+|[-*+>]\s+|\d+[.)]\s+|`{3,}[^\n]*\n|\|(?:[\s:|-]*\n\s*\|)?))*\s*[*_~`]*/;
const BLOCK_END = /[*_~`]*[\s|]*(?:\n(?:`{3,}\s*|[\s|:-]*))?$/;
const BLOCKS = "p, li, td, th, pre, h3, h4, h5, h6, blockquote";
// Files whose text has been written as Markdown, by their reader or by their author.
const MARKDOWN_NAME = /\.(md|markdown|pdf|docx|pptx|xls[xmb]?|ods|csv|tsv|json|jsonl|ndjson|html?|epub|eml)$/i;

/** Whether a document is Markdown. Without a format, as in passages, its title decides. */
export function isMarkdown({ format, title, text }) {
  if (format && format !== "text") return true;
  if (/\.\w{1,5}$/.test(title)) return format ? /\.(md|markdown)$/i.test(title) : MARKDOWN_NAME.test(title);
  return !format || /^#{1,6} \S/m.test(text);
}

/** Returns `text` with private characters around its part [start, end); without them if it is empty. */
export function encloseMark(text, [start, end]) {
  const marked = text.slice(start, end).replace(PRIVATE, "");
  const first = BLOCK_START.exec(marked)[0].length;
  const last = BLOCK_END.exec(marked).index;
  const [before, after] = [text.slice(0, start), text.slice(end)].map((part) => part.replace(PRIVATE, ""));
  if (first >= last) return before + marked + after;
  return [before, marked.slice(0, first), BEGIN, marked.slice(first, last), END, marked.slice(last), after].join("");
}

/** Returns an element that shows a text; Markdown is rendered as harmless elements. */
export function renderText(text, markdown) {
  const element = document.createElement("div");
  element.className = markdown ? "rendered" : "plain-text";
  if (markdown) createMarkdown(element, () => {})(text);
  else element.textContent = text;
  return element;
}

/** Replaces the private characters by <mark> around the text between them, which may be in several elements. */
export function placeMarks(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
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

/** Returns the marked sentence as it is displayed; texts of different blocks are separated. */
export function readMarked(root) {
  let text = "";
  let block = null;
  for (const mark of root.querySelectorAll("mark")) {
    const own = mark.closest(BLOCKS);
    text += (block === null || own === block ? "" : " ") + mark.textContent;
    block = own;
  }
  return text.trim();
}

/** Returns the text before and after the marked sentence within its blocks. */
export function readAround(root) {
  const marks = root.querySelectorAll("mark");
  const [first, last] = [marks[0], marks[marks.length - 1]];
  const before = document.createRange();
  before.setStart(first.closest(BLOCKS) ?? root, 0);
  before.setEndBefore(first);
  const after = document.createRange();
  after.setStartAfter(last);
  const block = last.closest(BLOCKS) ?? root;
  after.setEnd(block, block.childNodes.length);
  return [before.toString(), after.toString()];
}
