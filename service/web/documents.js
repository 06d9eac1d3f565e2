// The list of documents: upload, search, sort, open, and delete with undo.

import { openDocument } from "./drawer.js";
import { deleteDocument, listDocuments, seed } from "./service.js";
import { describe, label, languageOf, say } from "./text.js";
import { listDropped, wireUploads } from "./uploads.js";

const ROWS = 50; // shown at first, and more with each click
const LOADED_MAX = 5000; // documents that are searched and sorted
const FILTERS_MIN = 8; // documents from which search and sorting are offered
const UNDO_MS = 8000;
const PARALLEL = 4; // deletions
const ORDERS = {
  newest: (a, b) => (a.document_id < b.document_id ? 1 : -1), // ids begin with the time
  title: (a, b) => a.title.localeCompare(b.title),
  largest: (a, b) => b.characters - a.characters,
};
const $ = (id) => document.getElementById(id);

let documents = []; // those that were loaded, newest first
let next = null; // cursor of the next page
let shown = ROWS;
let deletion = null; // { items, timer } that can be undone
let addFiles = () => {};
let changed = () => {};
const rows = new Map(); // document id → its element
const selected = new Set(); // document ids

/** Wires the list; `onChange()` is called when documents were added or removed. */
export function wireDocuments({ onChange }) {
  changed = onChange;
  addFiles = wireUploads({ onStored: addDocument, onProgress: showProgress, onEnd: endUploads });
  $("files").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // the same file may be chosen again
    if (files.length) addFiles(files);
  });
  wireDrop();
  wireFilters();
  wireSelection();
  wireKeys();
  $("seed").addEventListener("click", () =>
    attempt(async () => {
      await seed();
      await load();
      note("documents_seeded");
      $("files").focus();
    }),
  );
  $("documents-more").addEventListener("click", () =>
    attempt(async () => {
      shown += ROWS;
      if (next && shown > documents.length) await loadMore(ROWS);
      show();
    }),
  );
  $("undo").addEventListener("click", undo);
  addEventListener("pagehide", () => deletion && commitDeletions({ keepalive: true }));
  addEventListener("reachable", () => attempt(load));
  return attempt(load);
}


// Files and folders can be dropped anywhere on the page; the panel shows that it accepts them.
function wireDrop() {
  const panel = document.querySelector(".documents");
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    panel.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && panel.classList.remove("dropping"));
  addEventListener("drop", async (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    panel.classList.remove("dropping");
    const files = await listDropped(event.dataTransfer);
    if (files.length) addFiles(files);
  });
}

function showProgress({ share, done, count }) {
  const ended = done === count;
  if ($("upload-progress").hidden !== ended) $("upload-progress").hidden = ended;
  $("upload-progress").value = share;
  if (!ended) note("uploading", { done, count });
}

function endUploads({ added, known, failed, first }) {
  if (failed === 0) return note("documents_added", { added, known });
  if (failed > 1) return note("documents_failed", { failed, added }, true);
  if (first.problem.key) return note(first.problem.key, {}, true);
  note("document_failed", { reason: describe(first.problem) }, true);
}

function addDocument(item) {
  const isSame = ({ document_id: id }) => id === item.document_id;
  if (deletion?.items.some(isSame)) deletion.items = deletion.items.filter((other) => !isSame(other)); // added again
  if (!documents.some(isSame)) documents.unshift(item);
  show();
  changed();
}

async function load() {
  const page = await listDocuments({ limit: ROWS });
  documents = page.items;
  next = page.next_cursor;
  rows.clear();
  show();
  changed();
}

async function loadMore(limit) {
  const page = await listDocuments({ limit, cursor: next });
  const loaded = new Set(documents.map((item) => item.document_id));
  documents.push(...page.items.filter((item) => !loaded.has(item.document_id)));
  next = page.next_cursor;
}

// Search and sorting need all documents.
async function loadAll() {
  while (next && documents.length < LOADED_MAX) await loadMore(200);
}

function wireFilters() {
  const update = () =>
    attempt(async () => {
      shown = ROWS;
      show();
      await loadAll();
      show();
    });
  $("documents-search").addEventListener("input", update);
  $("documents-sort").addEventListener("change", update);
}

/** The documents that were loaded, newest first, without those that were removed. */
export function listRemaining() {
  const removed = new Set(deletion?.items.map((item) => item.document_id));
  return documents.filter((item) => !removed.has(item.document_id));
}

function listVisible() {
  const words = $("documents-search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return listRemaining()
    .filter((item) => words.every((word) => item.title.toLowerCase().includes(word)))
    .sort(ORDERS[$("documents-sort").value]);
}

function show() {
  const visible = listVisible();
  const ids = new Set(visible.map((item) => item.document_id));
  for (const id of selected) if (!ids.has(id)) selected.delete(id);
  place($("documents-list"), visible.slice(0, shown).map(getRow));
  const count = listRemaining().length;
  enterRow($("documents-list").querySelector("li.entered") ?? $("documents-list").firstElementChild);
  $("documents-count").textContent = count ? `${count.toLocaleString()}${next ? "+" : ""}` : "";
  $("documents-empty").hidden = count > 0;
  $("documents-none").hidden = count === 0 || visible.length > 0;
  $("documents-filters").hidden = count < FILTERS_MIN && $("documents-search").value === "";
  $("documents-more").hidden = visible.length <= shown && (next === null || $("documents-search").value !== "");
  showSelection();
}

// Rows that stay where they are are not touched: they keep the focus, and are not animated again.
function place(list, elements) {
  const kept = new Set(elements);
  for (const element of [...list.children]) if (!kept.has(element)) element.remove();
  elements.forEach((element, n) => list.children[n] !== element && list.insertBefore(element, list.children[n] ?? null));
}

function getRow(item) {
  const id = item.document_id;
  if (!rows.has(id)) rows.set(id, createRow(item));
  return rows.get(id);
}

function createRow(item) {
  const row = $("document-template").content.cloneNode(true).firstElementChild;
  const title = row.querySelector(".title");
  title.textContent = item.title;
  title.lang = languageOf(item.title);
  title.addEventListener("click", () => openDocument(item.document_id));
  const values = { characters: item.characters, date: item.created_at };
  say(row.querySelector(".meta"), item.shared ? "meta_shared" : "meta", values);
  const box = label(row.querySelector(".select"), "select", { title: item.title });
  box.addEventListener("change", () => {
    if (box.checked) selected.add(item.document_id);
    else selected.delete(item.document_id);
    showSelection();
  });
  label(row.querySelector(".delete"), "delete", { title: item.title }).addEventListener("click", () => {
    const neighbour = row.nextElementSibling ?? row.previousElementSibling;
    remove([item]);
    (neighbour?.querySelector(".delete") ?? $("files")).focus();
  });
  return row;
}

// Tab leads to the controls of one row; the arrow keys lead to the other rows.
function wireKeys() {
  const list = $("documents-list");
  list.addEventListener("focusin", ({ target }) => enterRow(target.closest("li")));
  list.addEventListener("keydown", (event) => {
    const row = event.target.closest("li");
    const other = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
    if (!other) return;
    event.preventDefault();
    other.children[[...row.children].indexOf(event.target)].focus();
  });
}

function enterRow(row) {
  for (const other of rows.values()) {
    other.classList.toggle("entered", other === row);
    for (const control of other.querySelectorAll("input, button")) control.tabIndex = other === row ? 0 : -1;
  }
}

function wireSelection() {
  $("select-all").addEventListener("change", ({ target }) => {
    for (const { document_id: id } of target.checked ? listVisible() : []) selected.add(id);
    if (!target.checked) selected.clear();
    showSelection();
  });
  $("delete-selected").addEventListener("click", () => {
    remove(documents.filter((item) => selected.has(item.document_id)));
    $("undo").focus();
  });
}

function showSelection() {
  for (const [id, row] of rows) row.querySelector(".select").checked = selected.has(id);
  $("documents-list").classList.toggle("selecting", selected.size > 0);
  $("selection").hidden = selected.size === 0;
  say($("selection-count"), "selected", { count: selected.size });
  const all = listVisible().length;
  $("select-all").checked = selected.size === all;
  $("select-all").indeterminate = selected.size > 0 && selected.size < all;
}

// Documents disappear at once, and are deleted when the time to undo it has passed, or before the next question.
function remove(items) {
  commitDeletions();
  deletion = { items, timer: setTimeout(commitDeletions, UNDO_MS) };
  selected.clear();
  show();
  changed();
  if (items.length === 1) note("document_deleted", { title: items[0].title });
  else note("documents_deleted", { count: items.length });
  $("undo").hidden = false;
}

function undo() {
  clearTimeout(deletion?.timer);
  deletion = null;
  $("undo").hidden = true;
  note("documents_restored");
  show();
  changed();
  $("documents-list").querySelector(".delete")?.focus();
}

/** Deletes what was removed from the list. Resolves when the service has done so. */
export async function commitDeletions(options = {}) {
  if (!deletion) return;
  const { items, timer } = deletion;
  clearTimeout(timer);
  deletion = null;
  $("undo").hidden = true;
  const gone = new Set(items.map((item) => item.document_id));
  documents = documents.filter((item) => !gone.has(item.document_id));
  const failures = [];
  const left = [...items];
  const worker = async () => {
    for (let item = left.pop(); item; item = left.pop()) {
      try {
        await deleteDocument(item.document_id, options);
        rows.delete(item.document_id);
      } catch (problem) {
        if (problem.status !== 404) failures.push({ item, problem });
      }
    }
  };
  await Promise.all(Array.from({ length: options.keepalive ? items.length : PARALLEL }, worker));
  if (failures.length === 0) return;
  documents.push(...failures.map(({ item }) => item)); // they are still there
  show();
  changed();
  showProblem(failures[0].problem);
}

// Errors are shown beside the list and do not affect answers.
async function attempt(act) {
  try {
    await act();
  } catch (problem) {
    if (problem instanceof Error) throw problem;
    showProblem(problem);
  }
}

function showProblem(problem) {
  if (problem.key) return note(problem.key, {}, true);
  delete $("documents-note").dataset.text;
  $("documents-note").textContent = [problem.title, problem.detail].filter(Boolean).join(": ");
  $("documents-note").dataset.bad = "";
}

function note(key, values = {}, bad = false) {
  say($("documents-note"), key, values).toggleAttribute("data-bad", bad);
}
