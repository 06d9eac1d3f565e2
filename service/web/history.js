// The answers of this browser, newest first, stored only in the browser. Bounded: the oldest are removed.

import { forget, recall, remember } from "./storage.js";

const NAME = "kotae.history";
const ENTRIES_MAX = 30;
const CHARACTERS_MAX = 400_000; // of JSON; browsers allow about five million per site

/** Returns the stored answers: [{ question, grounded, text, answer }]. */
export function listHistory() {
  try {
    const kept = JSON.parse(recall(NAME) ?? "[]");
    return Array.isArray(kept) ? kept.filter((entry) => typeof entry?.question === "string" && entry.answer) : [];
  } catch {
    return [];
  }
}

export function addHistory(entry) {
  const kept = [entry, ...listHistory()].slice(0, ENTRIES_MAX);
  while (kept.length > 1 && JSON.stringify(kept).length > CHARACTERS_MAX) kept.pop();
  remember(NAME, JSON.stringify(kept));
}

export const clearHistory = () => forget(NAME);
