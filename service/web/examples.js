// Example questions: from the headings of the reader's documents, as far as the service answers them; of the samples; or
// else what there is. Titles and headings are external text: only those of plain words are used.

import { searchDocuments } from "./service.js";
import { EXAMPLES, languageOf, OVERVIEW, QUESTIONS } from "./text.js";

const SHOWN = 3;
const DOCUMENTS_MAX = 6; // that are examined, newest first
const PLAIN = /^[\p{L}\p{N}][\p{L}\p{M}\p{N} \-–'’.,&()/:・ー%+?？、]*$/u;
const CHARACTERS_MAX = 60;
const HEADING = /^(#{1,4}) +(.+?)(?: +#+)?$/gm;

/**
 * Returns questions about `documents`, newest first, in the language of the page for the samples. The same documents
 * give the same questions. `quotes`: the model quotes sentences, so that a question about a whole document is useless.
 */
export async function findExamples(documents, { language, quotes }) {
  const titles = new Set(documents.map(({ title }) => title));
  const samples = EXAMPLES[language].filter(({ title }) => titles.has(title)).map(({ question }) => question);
  const own = documents.filter(({ shared }) => !shared);
  const candidates = own.length || samples.length ? own : documents;
  const isReadable = ({ title }) => languageOf(title) === language;
  const examined = candidates.toSorted((a, b) => isReadable(b) - isReadable(a)).slice(0, DOCUMENTS_MAX);
  const found = await findAnswerable(examined, quotes).catch(ignoreProblem);
  const questions = [...found, ...samples].slice(0, SHOWN);
  return questions.length || documents.length === 0 ? questions : [OVERVIEW[language]];
}

// Without the service there are no examples of documents; a problem that matters is shown where it matters.
function ignoreProblem(problem) {
  if (problem instanceof Error) throw problem;
  return [];
}

// Questions about parts come first: one of each document, and then others of the same ones.
async function findAnswerable(documents, quotes) {
  const lists = [];
  for (const document of documents) lists.push(await listCandidates(document));
  const rounds = Array.from({ length: SHOWN }, (_, n) => lists.map(({ parts }) => parts[n]));
  if (!quotes) rounds.push(lists.map(({ whole }) => whole));
  const found = [];
  for (const candidate of rounds.flat()) {
    if (found.length === SHOWN) break;
    if (candidate && !found.includes(candidate.question) && (await isAnswered(candidate))) found.push(candidate.question);
  }
  return found;
}

async function listCandidates({ document_id: id, title }) {
  const { items } = await searchDocuments({ q: title, documents: id, limit: 5 });
  const passages = items.sort((a, b) => a.start - b.start).map(({ text }) => text).join("\n");
  const headings = [...new Set([...passages.matchAll(HEADING)].map(([, marks, text]) => `${marks} ${text.trim()}`))];
  const main = headings.find((heading) => heading.startsWith("# "))?.slice(2);
  const name = [title.replace(/\.\w{1,5}$/, "").replaceAll("_", " "), main].filter(isPlain).at(-1);
  const parts = headings.map((heading) => heading.replace(/^#+ /, "")).filter((heading) => heading !== main && isPlain(heading));
  const questions = parts.filter((heading) => /[?？]$/.test(heading));
  const others = name ? parts.filter((heading) => !/[?？]$/.test(heading)).map((part) => QUESTIONS[languageOf(part)].part(name, part)) : [];
  const ask = (question) => ({ question, id });
  return { parts: [...questions, ...others].map(ask), whole: name && ask(QUESTIONS[languageOf(name)].whole(name)) };
}

const isPlain = (text) => Boolean(text) && text.length <= CHARACTERS_MAX && PLAIN.test(text) && /\p{L}{2}/u.test(text);

// The best passage has to be one of the document.
async function isAnswered({ question, id }) {
  const { answerable, items } = await searchDocuments({ q: question, limit: 1 });
  return answerable && items[0]?.document_id === id;
}
