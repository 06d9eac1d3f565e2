// Uploads: one request per file, four at a time, each with a row. A failure affects its file only and can be repeated.

import { uploadFile } from "./service.js";
import { describe, label, languageOf, say } from "./text.js";

const PARALLEL = 4;
const FILES_MAX = 2000; // at once
const ATTEMPTS_MAX = 5; // while the service is busy
const WAIT_SECONDS_MAX = 30; // for one attempt
const FINAL = new Set([400, 413, 415, 422]); // status of files that will not be accepted
const $ = (id) => document.getElementById(id);

let uploads = []; // { file, row, share, state, problem, item } of the current list
let running = 0;

/**
 * Wires the list of uploads and returns a function that adds files to it. `onStored(document)` is called for each stored
 * document, `onProgress({ share, done, count })` during the uploads, and `onEnd({ added, known, failed, first })` when
 * none is left: the numbers of files, and the first upload that failed.
 */
export function wireUploads({ onStored, onProgress, onEnd }) {
  $("uploads-retry").addEventListener("click", () => retry(canRetry));
  $("uploads-clear").addEventListener("click", () => {
    uploads = uploads.filter(({ state }) => !isEnded(state));
    show();
    $("files").focus();
  });
  addEventListener("reachable", () => retry(({ problem }) => problem?.key === "unreachable"));
  return (files) => {
    if (running === 0) uploads = []; // a new list
    for (const file of files.slice(0, FILES_MAX - uploads.length)) uploads.push(createUpload(file));
    show();
    start();
  };

  function start() {
    while (running < PARALLEL) {
      const upload = uploads.find(({ state }) => state === "queued");
      if (!upload) break;
      running += 1;
      send(upload, onStored, report).finally(() => {
        running -= 1;
        start();
      });
    }
    if (uploads.length === 0) return;
    report();
    if (running === 0) end();
  }

  function end() {
    show();
    onEnd(summarize());
  }

  function report() {
    const share = uploads.reduce((sum, upload) => sum + (isEnded(upload.state) ? 1 : upload.share), 0);
    onProgress({ share: share / uploads.length, done: uploads.filter(({ state }) => isEnded(state)).length, count: uploads.length });
    $("uploads-retry").hidden = !uploads.some(canRetry);
    $("uploads-clear").hidden = running > 0;
  }

  function retry(matches) {
    for (const upload of uploads.filter(matches)) setState(upload, "queued");
    start();
  }

  function createUpload(file) {
    const row = $("upload-template").content.cloneNode(true).firstElementChild;
    const name = row.querySelector(".title");
    name.textContent = file.name;
    name.lang = languageOf(file.name);
    label(row.querySelector("progress"), "upload_progress_of", { title: file.name });
    const upload = { file, row, share: 0 };
    const button = row.querySelector(".retry");
    label(button, "retry_of", { title: file.name });
    say(button, "retry").addEventListener("click", () => retry((other) => other === upload));
    setState(upload, "queued");
    return upload;
  }
}

/** Returns the files of a drop, also those in folders. */
export async function listDropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (files.length >= FILES_MAX || entry.name.startsWith(".")) return;
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // up to 100
    if (entries.length === 0) return;
    for (const child of entries) await collect(child, files);
  }
}

async function send(upload, onStored, report) {
  upload.problem = null;
  for (let attempt = 1; ; attempt += 1) {
    setState(upload, "sending");
    try {
      const results = await uploadFile(upload.file, (share) => {
        upload.share = share;
        upload.row.querySelector("progress").value = share;
        if (share === 1) setState(upload, "reading"); // uploaded; the service reads it
        report();
      });
      return end(upload, results, onStored);
    } catch (problem) {
      upload.problem = problem;
      if (![429, 503].includes(problem.status) || attempt === ATTEMPTS_MAX) return setState(upload, "failed");
      setState(upload, "queued");
      const seconds = Math.min(problem.retry_after_seconds || 2 ** attempt, WAIT_SECONDS_MAX);
      upload.state = "waiting";
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  }
}

// An archive has several results: those that failed are counted, and the first is named.
function end(upload, results, onStored) {
  const stored = results.filter((result) => result.document).map((result) => result.document);
  const failures = results.filter((result) => result.problem);
  const added = stored.filter((item) => item.created).length;
  upload.counts = { added, known: stored.length - added, failed: failures.length };
  if (failures.length) {
    const [{ name, status, problem }] = failures;
    const where = results.length > 1 ? `${name}: ` : "";
    upload.problem = { status, detail: where + describe(problem) };
  }
  setState(upload, failures.length ? "failed" : added ? "added" : "known");
  if (stored.length && failures.length) {
    const values = { ...upload.counts, reason: upload.problem.detail };
    say(upload.row.querySelector(".meta"), "upload_partly", values);
  } else if (results.length > 1 && added) {
    say(upload.row.querySelector(".meta"), "documents_added", upload.counts);
  }
  stored.forEach(onStored);
}

function setState(upload, state) {
  const { row, problem } = upload;
  upload.state = row.dataset.state = state;
  if (state === "queued") Object.assign(upload, { share: 0, counts: { added: 0, known: 0, failed: 0 } });
  if (state === "failed" && !upload.counts.failed) upload.counts.failed = 1;
  row.querySelector("progress").hidden = state !== "sending" && state !== "reading";
  row.querySelector(".retry").hidden = !canRetry(upload);
  const text = row.querySelector(".meta");
  if (state !== "failed" || problem.key) say(text, state === "failed" ? problem.key : `upload_${state}`);
  else {
    delete text.dataset.text;
    text.textContent = describe(problem);
  }
}

const canRetry = ({ state, problem }) => state === "failed" && !FINAL.has(problem.status);

const isEnded = (state) => state === "added" || state === "known" || state === "failed";

function summarize() {
  const count = (name) => uploads.reduce((sum, { counts }) => sum + counts[name], 0);
  const first = uploads.find(({ state }) => state === "failed");
  return { added: count("added"), known: count("known"), failed: count("failed"), first };
}

function show() {
  $("uploads").hidden = uploads.length < 2 && !uploads.some(({ state }) => state === "failed");
  $("uploads-list").replaceChildren(...uploads.map(({ row }) => row));
}
