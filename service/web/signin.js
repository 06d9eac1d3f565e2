// Sign-in: the key is sent once, in a header; the session cookie is not readable by scripts.

const WORDS = {
  en: {
    heading: "Your API key",
    send: "Sign in",
    out: "Sign out",
    hint: "An administrator makes one with “kotae keys create”.",
    wrong: "This key is not valid: it is wrong, expired or revoked.",
    unreachable: "The service cannot be reached.",
    known: (name) => `Signed in as ${name}.`,
  },
  ja: {
    heading: "API キー",
    send: "サインイン",
    out: "サインアウト",
    hint: "管理者が “kotae keys create” で発行します。",
    wrong: "このキーは使えません。誤りか、期限切れか、無効化されています。",
    unreachable: "サービスに接続できません。",
    known: (name) => `${name} としてサインインしています。`,
  },
};
const language = navigator.language.startsWith("ja") ? "ja" : "en";
const words = WORDS[language];
const $ = (id) => document.getElementById(id);

document.documentElement.lang = language;
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
  else $("note").textContent = status ? words.wrong : words.unreachable;
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
  return fetch("auth/session", { method, headers }).then(({ status }) => status, () => 0);
}
