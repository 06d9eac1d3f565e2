// The list of documents: upload, view, delete.

import { deleteDocument, listDocuments, seed, uploadFiles } from "./service.js";
import { label, languageOf, say, words } from "./text.js";

const $ = (id) => document.getElementById(id);
let next = null; // cursor of the next page

export function wireDocuments() {
  $("files").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // the same file may be chosen again
    await addFiles(files);
  });
  wireDrop();
  $("seed").addEventListener("click", () =>
    attempt(async () => {
      await seed();
      await showDocuments();
      note("documents_seeded");
      $("files").focus();
    }),
  );
  $("documents-more").addEventListener("click", () => attempt(() => showDocuments(next)));
  return attempt(() => showDocuments());
}

// Files can be dropped anywhere on the page; the panel shows that it accepts them.
function wireDrop() {
  const panel = document.querySelector(".documents");
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    panel.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && panel.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    panel.classList.remove("dropping");
    addFiles([...event.dataTransfer.files]);
  });
}

async function addFiles(files) {
  if (files.length === 0) return;
  const progress = $("upload-progress");
  note("uploading", { count: files.length });
  progress.value = 0;
  progress.hidden = false;
  await attempt(async () => {
    const { items } = await uploadFiles(files, (share) => {
      progress.value = share;
      if (share === 1) note("reading", { count: files.length }); // uploaded; the service reads them
    });
    const added = items.filter((item) => item.created).length;
    await showDocuments();
    note("documents_added", { added, known: items.length - added });
  });
  progress.hidden = true;
}

async function showDocuments(cursor) {
  const { items, next_cursor } = await listDocuments(cursor);
  const list = $("documents-list");
  if (!cursor) list.replaceChildren();
  list.append(...items.map(createItem));
  next = next_cursor;
  $("documents-more").hidden = next === null;
  count();
}

function count() {
  const { length } = $("documents-list").children;
  $("documents-count").textContent = length ? `${length}${next ? "+" : ""}` : "";
  $("documents-empty").hidden = length > 0;
}

function createItem(item) {
  const element = $("document-template").content.cloneNode(true).firstElementChild;
  const title = element.querySelector(".title");
  title.textContent = item.title;
  title.lang = languageOf(item.title);
  say(element.querySelector(".meta"), item.shared ? "meta_shared" : "meta", { characters: item.characters });
  const button = label(element.querySelector(".delete"), "delete", { title: item.title });
  button.addEventListener("click", () => remove(item, element));
  return element;
}

async function remove(item, element) {
  if (!confirm(words("delete_sure", { title: item.title }))) return;
  await attempt(async () => {
    await deleteDocument(item.document_id);
    const neighbour = element.nextElementSibling ?? element.previousElementSibling;
    element.remove();
    count();
    (neighbour?.querySelector(".delete") ?? $("files")).focus();
    note("documents_deleted", { title: item.title });
  });
}

// Errors are shown beside the list and do not affect answers.
async function attempt(act) {
  try {
    await act();
  } catch (problem) {
    if (problem instanceof Error) throw problem;
    if (problem.key) return note(problem.key, {}, true);
    delete $("documents-note").dataset.text;
    $("documents-note").textContent = [problem.title, problem.detail].filter(Boolean).join(": ");
    $("documents-note").dataset.bad = "";
  }
}

function note(key, values = {}, bad = false) {
  say($("documents-note"), key, values).toggleAttribute("data-bad", bad);
}
