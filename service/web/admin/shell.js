// The frame of each page: header with account, navigation, session and access check. A page calls `openPage`.

import { createAccount } from "../account.js";
import { wireDrawer } from "../drawer.js";
import { wireConnection } from "../notices.js";
import { resolveUrl, signInAddress } from "../root.js";
import { fetchJson } from "../service.js";
import { wireSwitches } from "../switches.js";
import { label, onLanguage, say, words } from "../text.js";
import { createDrawer, createIcon } from "./dialogs.js";
import { create, showProblem } from "./elements.js";
import "./text.js";

/** The pages in the order of the navigation. `role`: who may use the page. */
const NAVIGATION = [
  { path: "admin", text: "nav_overview", role: "admin" },
  { path: "admin/log", text: "nav_log", role: "admin" },
  { path: "admin/people", text: "nav_people", role: "admin" },
  { path: "admin/budgets", text: "nav_budgets", role: "admin" },
  { path: "admin/billing", text: "nav_billing", role: "admin" },
  { path: "admin/documents", text: "nav_documents", role: "admin" },
  { path: "admin/audit-log", text: "nav_audit_log", role: "admin" },
  { path: "admin/system", text: "nav_system", role: "admin" },
  { path: "account/log", text: "nav_my_log", role: "user" },
  { path: "account/billing", text: "nav_my_billing", role: "user" },
  { path: "account", text: "nav_account", role: "user" },
];

const THEME_CIRCLE = "M10 2.8a7.2 7.2 0 1 0 0 14.4a7.2 7.2 0 1 0 0-14.4z";
const THEME_HALF = "M10 2.8a7.2 7.2 0 0 1 0 14.4z";

/**
 * Shows the page at `path`, an entry of `NAVIGATION`: `render(main, session)` fills it. Without a session the browser is
 * sent to the sign-in, which returns here; users without the role see an explanation.
 */
export async function openPage(path, render) {
  const { text, role } = NAVIGATION.find((entry) => entry.path === path);
  const navigation = create("nav", { className: "pages" });
  label(navigation, "navigation");
  const main = create("main", { id: "main", tabIndex: -1 }, create("h1", { text }));
  document.body.append(createSkipLink(), createHeader(), navigation, ...createNotices(), main, createDrawer());
  wireSwitches();
  wireConnection();
  wireDrawer();
  const showTitle = () => (document.title = `${words(text)} · Kotae`);
  onLanguage(showTitle);
  showTitle();
  const session = await loadSession(main);
  if (!session) return;
  document.getElementById("account").replaceChildren(...createAccount(session));
  navigation.append(createNavigation(session, path));
  navigation.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  if (role === "admin" && session.role !== "admin") explainRole(main, session);
  else await render(main, session);
}

async function loadSession(main) {
  try {
    return await fetchJson("auth/session");
  } catch (problem) {
    if (problem.status === 401) location.replace(signInAddress());
    else main.append(showProblem(create("p", { className: "note" }), problem));
    return null;
  }
}

function createSkipLink() {
  return create("a", { className: "skip", href: "#main", text: "skip_to_content" });
}

function createHeader() {
  const name = create("p", { className: "name", lang: "en" }, create("a", { href: resolveUrl("") }, create("img", { src: resolveUrl("web/icon.svg"), alt: "", width: 32, height: 32 }), " Kotae ", create("span", { lang: "ja", content: "答え" })));
  const account = create("span", { id: "account" });
  account.setAttribute("role", "group");
  const language = create("button", { type: "button", id: "language", className: "quiet" });
  const theme = create("button", { type: "button", id: "theme", className: "quiet icon" }, createIcon(THEME_CIRCLE, 20, THEME_HALF));
  label(theme, "theme");
  return create("header", { className: "top" }, name, create("div", { className: "switches" }, account, language, theme));
}

// The same elements as in index.html, which notices.js fills.
function createNotices() {
  const connection = create("p", { id: "connection", className: "notice", hidden: true }, create("span"), " ", create("a", { hidden: true }));
  const blocked = create("section", { id: "blocked", className: "notice", hidden: true },
    create("h2", { text: "blocked" }), create("p", { text: "blocked_detail" }), create("pre", {}, create("code", { id: "blocked-remedy" })));
  for (const notice of [connection, blocked]) notice.setAttribute("role", "alert");
  return [connection, blocked];
}

function createNavigation(session, path) {
  const allowed = NAVIGATION.filter(({ role }) => role === "user" || session.role === "admin");
  const links = allowed.map((entry) => {
    const link = create("a", { text: entry.text, href: resolveUrl(entry.path) });
    if (entry.path === path) link.setAttribute("aria-current", "page");
    return create("li", {}, link);
  });
  return create("ul", {}, create("li", {}, create("a", { text: "nav_ask", href: resolveUrl("") })), ...links);
}

function explainRole(main, session) {
  main.append(create("section", { className: "panel" },
    create("h2", { text: "admins_only" }),
    create("p", { text: "admins_only_detail", values: { name: session.user_id } }),
    create("p", {}, create("a", { text: "nav_account", href: resolveUrl("account") }))));
}

/** Calls `refresh()` now and every `ms` while the page is visible; a call begins after the previous one has ended. */
export function refreshWhileVisible(refresh, ms) {
  let timer = null;
  let running = false;
  const run = async () => {
    clearTimeout(timer);
    running = true;
    await refresh();
    running = false;
    if (!document.hidden) timer = setTimeout(run, ms);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (!running) run();
  });
  return run();
}
