// Limits of users and plans: as a text, and as the fields of a form.

import { create, createField } from "./elements.js";
import { formatCount, formatUsd } from "./format.js";
import { onLanguage, words } from "../text.js";
import "./people_text.js";

const NAMES = ["requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "cost_usd_per_day", "cost_usd_per_month", "concurrent"];
const isMoney = (name) => name.startsWith("cost_");

/** The limits in one line, as they are in the API: `{ tokens_per_day: 5 }`. */
export function createLimitsText(limits) {
  const element = create("span", { className: "limits-text" });
  element.limits = limits;
  return fill(element);
}

function fill(element) {
  element.textContent = describeLimits(element.limits);
  return element;
}

onLanguage(() => document.querySelectorAll(".limits-text").forEach(fill));

/** The limits in the language of the page. */
export function describeLimits(limits) {
  const listed = NAMES.filter((name) => limits?.[name] !== undefined && limits[name] !== null);
  if (listed.length === 0) return words("limits_none");
  return listed.map((name) => words(`limits_${name}`, { value: isMoney(name) ? formatUsd(limits[name]) : formatCount(limits[name]) })).join(" · ");
}

/** A field for each limit; empty ones do not apply. */
export function createLimitFields(limits = {}) {
  const fields = NAMES.map((name) => {
    const step = isMoney(name) ? "0.000000001" : "1";
    const input = create("input", { type: "number", name, min: 0, step, inputMode: isMoney(name) ? "decimal" : "numeric" });
    input.value = limits?.[name] ?? "";
    return createField(`limit_name_${name}`, input);
  });
  return create("fieldset", { className: "limit-fields" }, create("legend", { text: "limits_legend" }), ...fields);
}

/** The limits in a form; money as the decimal string that was typed. */
export function readLimits(form) {
  const entries = NAMES.map((name) => [name, form.elements[name].value.trim()]).filter(([, value]) => value !== "");
  return Object.fromEntries(entries.map(([name, value]) => [name, isMoney(name) ? value : Number(value)]));
}
