// Explanations above the page of what affects everything: the service cannot be reached, the session has ended, or the
// service refuses all requests of this page.

import { resolveUrl, signInAddress } from "./root.js";
import { say } from "./text.js";

const RETRY_MS = 2000; // between two attempts to reach the service
const RETRY_MS_MAX = 15_000;
const $ = (id) => document.getElementById(id);

let retry = null; // timer, while the service cannot be reached

/** Explains a problem that affects the whole page; others are shown where they occurred. */
export function explain(problem) {
  if (problem?.code === "foreign_origin") explainBlocked();
  if (problem?.code === "unauthorized" && $("connection")) showConnection("signed_out", "sign_in_again");
}

// A reverse proxy changes the Host header, with which the service compares the origin of the page.
function explainBlocked() {
  $("blocked").hidden = false;
  $("blocked-remedy").textContent = [
    "# nginx",
    "proxy_set_header Host $http_host;",
    "# Kotae",
    `KOTAE_ALLOWED_ORIGINS=${location.origin}`,
  ].join("\n");
}

/** Says that the service cannot be reached, until it can; then a `reachable` event is sent to the window. */
export function explainUnreachable() {
  if (retry !== null || !$("connection")) return;
  showConnection("unreachable_now");
  wait(RETRY_MS);
}

function wait(ms) {
  retry = setTimeout(async () => {
    const reached = await fetch(resolveUrl("health/live")).then(({ ok }) => ok, () => false);
    if (!reached) return wait(Math.min(ms * 1.5, RETRY_MS_MAX));
    retry = null;
    $("connection").hidden = true;
    dispatchEvent(new Event("reachable"));
  }, ms);
}

/** Checks at once when the network comes back; without a network, the service may still be on this machine. */
export function wireConnection() {
  addEventListener("online", () => {
    if (retry === null) return;
    clearTimeout(retry);
    wait(0);
  });
  addEventListener("offline", () => fetch(resolveUrl("health/live")).catch(explainUnreachable));
}

function showConnection(key, action) {
  const notice = $("connection");
  say(notice.querySelector("span"), key);
  const link = notice.querySelector("a");
  link.hidden = !action;
  if (action) say(link, action).href = signInAddress();
  notice.hidden = false;
}
