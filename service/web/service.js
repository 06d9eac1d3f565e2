// The service's routes as functions. A failure is thrown as its problem object; errors of the page have a `key` of a
// text in place of title and detail.

import { explain, explainUnreachable } from "./notices.js";
import { resolveUrl } from "./root.js";

export const listDocuments = ({ limit, cursor }) => fetchJson(`ai/documents?${new URLSearchParams({ limit, ...(cursor ? { cursor } : {}) })}`);
export const fetchDocument = (id) => fetchJson(`ai/documents/${encodeURIComponent(id)}`);
export const searchDocuments = (query) => fetchJson(`ai/search?${new URLSearchParams(query)}`);
export const originalUrl = (id) => resolveUrl(`ai/documents/${encodeURIComponent(id)}/original`);
export const deleteDocument = (id, options) => fetchJson(`ai/documents/${encodeURIComponent(id)}`, { method: "DELETE", ...options });
const CONVERSATION_ANSWERS_MAX = 500; // shown of one conversation

/** The session of this browser; null without one. */
export const fetchSession = () => fetch(resolveUrl("auth/session")).then((response) => (response.ok ? response.json() : null), () => null);
export const signOut = () => fetchJson("auth/session", { method: "DELETE" });

/** Signs in with a key. Returns the key of a text that says why it failed, or an empty object. */
export async function signIn(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) return { key: "key_invalid" };
  try {
    await fetchJson("auth/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
    return {};
  } catch (problem) {
    if (problem.key) return problem;
    const reasons = { 401: "key_invalid", 429: "sign_in_busy", 503: "sign_in_busy" };
    return { key: reasons[problem.status] ?? "sign_in_refused", status: problem.status };
  }
}

export const seed = () => fetchJson("seed", { method: "POST" });

/** Starts an answer. The key makes repeated requests of the browser attach to the same answer. */
export function beginAnswer(body) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": createIdempotencyKey() };
  return fetchJson("ai/answers", { method: "POST", headers, body: JSON.stringify(body) });
}

/** The answers of a conversation, oldest first. */
export async function fetchConversation(id) {
  const answers = [];
  let cursor = null;
  do {
    const page = await fetchJson(`ai/conversations/${encodeURIComponent(id)}?${new URLSearchParams(cursor ? { cursor } : {})}`);
    answers.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && answers.length < CONVERSATION_ANSWERS_MAX);
  return answers;
}

export const fetchAnswer = (id) => fetchJson(`ai/answers/${encodeURIComponent(id)}`);
export const stopAnswer = (id) => fetchJson(`ai/answers/${encodeURIComponent(id)}`, { method: "DELETE" });

/**
 * Uploads a file or an archive and calls `onProgress(share)`, which `fetch` does not support. Returns a result for each
 * file: { name, document } or { name, problem }.
 */
export function uploadFile(file, onProgress) {
  const body = new FormData();
  body.append("files", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", resolveUrl("ai/upload?partial=true"));
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => onProgress(total ? loaded / total : 0);
    request.onload = () => {
      const answer = request.response ?? { title: request.statusText, status: request.status };
      explain(answer);
      if (request.status < 400) resolve(answer.items);
      else reject({ status: request.status, ...answer, retry_after_seconds: Number(request.getResponseHeader("Retry-After")) });
    };
    request.onerror = () => {
      explainUnreachable();
      reject({ key: "unreachable" });
    };
    request.send(body);
  });
}

/** Returns the name of the default model; null if the service cannot be reached. */
export async function fetchModel() {
  try {
    return (await (await fetch(resolveUrl("health/ready"))).json()).model;
  } catch {
    return null;
  }
}

/** The state of the service: for admins with statistics. Also if it is stopping (503). */
export async function fetchReadiness() {
  try {
    return await fetchJson("health/ready");
  } catch (problem) {
    if (problem.queue) return problem; // 503 with the same body
    throw problem;
  }
}

/** Returns why a stream ended without an event, which EventSource does not report. */
export async function findCause(heard) {
  try {
    const { ok } = await fetch(resolveUrl("health/ready"));
    return { key: heard ? "lost" : ok ? "refused" : "not_ready" };
  } catch {
    return { key: heard ? "lost" : "unreachable" };
  }
}

/** Calls a route. `path` has no leading slash; 204 is null. Throws the problem object of a failure. */
export async function fetchJson(path, options) {
  let response;
  try {
    response = await fetch(resolveUrl(path), options);
  } catch {
    explainUnreachable();
    throw { key: "unreachable" };
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({ title: response.statusText, status: response.status }));
  explain(body);
  if (!response.ok) throw body;
  return body;
}

/** Sends a body to a route as JSON. Returns and throws as `fetchJson`. */
export const sendJson = (method, path, body, headers = {}) => fetchJson(path, {
  method,
  ...(body === undefined ? {} : { headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body) }),
});

/** Fetches JSON with the entity tag of the previous response: { body, etag }; null if it is the same (304). */
export async function fetchIfChanged(path, etag) {
  let response;
  try {
    response = await fetch(resolveUrl(path), { cache: "no-store", headers: etag ? { "If-None-Match": etag } : {} });
  } catch {
    explainUnreachable();
    throw { key: "unreachable" };
  }
  if (response.status === 304) return null;
  const body = await response.json().catch(() => ({ title: response.statusText, status: response.status }));
  explain(body);
  if (!response.ok) throw body;
  return { body, etag: response.headers.get("ETag") };
}

/** A key under which a repeated request has one effect. */
export function createIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
