// Sign-in: the key is sent once, in a header; the session cookie is not readable by scripts.

import { showAccount } from "./account.js";
import { ROOT, findReturnAddress } from "./root.js";
import { signIn } from "./service.js";
import { wireSwitches } from "./switches.js";
import { say } from "./text.js";

const $ = (id) => document.getElementById(id);
const returnAddress = findReturnAddress(new URLSearchParams(location.search).get("next"));

wireSwitches();
if (returnAddress.pathname !== ROOT.pathname) {
  say($("destination"), "sign_in_continue", { page: returnAddress.href.slice(ROOT.href.length - 1).split("?")[0] }).hidden = false;
}
$("signin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  say($("send"), "signing_in").disabled = true;
  const { key: reason, status } = await signIn(key);
  say($("send"), "sign_in").disabled = false;
  if (!reason) return location.assign(returnAddress);
  say($("note"), reason, { status }).dataset.bad = "";
  $("key").setAttribute("aria-invalid", "true");
  $("key").select();
});
$("key").addEventListener("input", () => {
  $("key").removeAttribute("aria-invalid");
  delete say($("note"), "api_key_hint").dataset.bad;
});
$("reveal").addEventListener("click", () => {
  const shown = $("key").type === "password";
  $("key").type = shown ? "text" : "password";
  say($("reveal"), shown ? "conceal" : "reveal").setAttribute("aria-pressed", shown);
  $("key").focus();
});

const session = await showAccount();
if (session) {
  $("signin").hidden = true;
  $("signed-in").hidden = false;
  $("administration").hidden = session.role !== "admin";
}
