// Sign-in: the key is sent once, in a header; the session cookie is not readable by scripts.

import { showAccount } from "./account.js";
import { findReturnAddress } from "./root.js";
import { signIn } from "./service.js";
import { wireSwitches } from "./switches.js";
import { say } from "./text.js";

const $ = (id) => document.getElementById(id);
const returnAddress = findReturnAddress(new URLSearchParams(location.search).get("next"));

wireSwitches();
$("signin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("send").disabled = true;
  const { key: reason, status } = await signIn(key);
  $("send").disabled = false;
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

if (await showAccount()) {
  $("signin").hidden = true;
  $("signed-in").hidden = false;
}
