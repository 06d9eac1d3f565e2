// Sign-in: the key is sent once, in a header; the session cookie is not readable by scripts.

import { explainBlocked } from "./blocked.js";
import { setLanguage } from "./text.js";

const WORDS = {
  en: {
    heading: "Your API key",
    send: "Sign in",
    out: "Sign out",
    hint: "An administrator makes one with “kotae keys create”.",
    wrong: "This key is not valid: it is wrong, expired or revoked.",
    refused: (status) => `The service refused the request (${status}).`,
    unreachable: "The service cannot be reached.",
    known: (name) => `Signed in as ${name}.`,
  },
  ja: {
    heading: "API キー",
    send: "サインイン",
    out: "サインアウト",
    hint: "管理者が “kotae keys create” で発行します。",
    wrong: "このキーは使えません。誤りか、期限切れか、無効化されています。",
    refused: (status) => `リクエストが拒否されました（${status}）。`,
    unreachable: "サービスに接続できません。",
    known: (name) => `${name} としてサインインしています。`,
  },
};
const language = navigator.language.startsWith("ja") ? "ja" : "en";
const words = WORDS[language];
const $ = (id) => document.getElementById(id);

setLanguage(language);
$("heading").textContent = words.heading;
$("send").textContent = words.send;
$("signout").textContent = words.out;
$("note").textContent = words.hint;

$("signin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  const status = await ask("POST", /^[\x21-\x7e]+$/.test(key) ? { Authorization: `Bearer ${key}` } : { Authorization: "Bearer -" });
  if (status === 200) location.assign("./");
  else $("note").textContent = { 0: words.unreachable, 401: words.wrong }[status] ?? words.refused(status);
});

$("signout").addEventListener("click", async () => {
  await ask("DELETE");
  location.reload();
});

const response = await fetch("auth/session").catch(() => null);
if (response?.ok) {
  $("note").textContent = words.known((await response.json()).user_id);
  $("signout").hidden = false;
}

async function ask(method, headers = {}) {
  try {
    const response = await fetch("auth/session", { method, headers });
    if (!response.ok) explainBlocked(await response.json().catch(() => null));
    return response.status;
  } catch {
    return 0;
  }
}
