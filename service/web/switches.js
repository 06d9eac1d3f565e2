// The switches of every page: theme and language. Both are remembered in this browser.

import { recall, remember } from "./storage.js";
import { language, say, setLanguage } from "./text.js";

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

/** Shows the page in the chosen language, and calls `onLanguage()` then and after each change. */
export function wireSwitches(onLanguage = () => {}) {
  wireTheme();
  const show = (chosen) => {
    setLanguage(chosen);
    say($("language"), "other_language").lang = language() === "ja" ? "en" : "ja";
    onLanguage();
  };
  $("language").addEventListener("click", () => {
    show(language() === "ja" ? "en" : "ja");
    remember("kotae.language", language());
  });
  show(recall("kotae.language") ?? (navigator.language.startsWith("ja") ? "ja" : "en"));
}

function wireTheme() {
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const show = () => $("theme").setAttribute("aria-pressed", isDark());
  systemDark.addEventListener("change", show);
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("kotae.theme", root.dataset.theme);
    show();
  });
  show();
}
