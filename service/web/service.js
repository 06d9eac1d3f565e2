// The service's routes as functions. A failure is thrown as its problem object; one of our own making has a `key` into
// the page's words in place of title and detail.

export const listDocuments = (cursor) => call(`ai/documents?${new URLSearchParams({ limit: 50, ...(cursor ? { cursor } : {}) })}`);
export const deleteDocument = (id) => call(`ai/documents/${encodeURIComponent(id)}`, { method: "DELETE" });
export const seed = () => call("seed", { method: "POST" });

export function uploadFiles(files) {
  const body = new FormData();
  for (const file of files) body.append("files", file);
  return call("ai/upload", { method: "POST", body });
}

/** Why a stream ended without a word: EventSource does not tell. */
export async function findCause(heard) {
  try {
    const { ok } = await fetch("health/ready");
    return { key: heard ? "lost" : ok ? "refused" : "not_ready" };
  } catch {
    return { key: heard ? "lost" : "unreachable" };
  }
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw { key: "unreachable" };
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({ title: response.statusText, status: response.status }));
  if (!response.ok) throw body;
  return body;
}
