// Values in the language of the page: money, counts, durations, sizes and times. An element formatted by `showValue`
// follows changes of the language, and a relative time follows the clock.

import { language, onLanguage, words } from "../text.js";

const REFRESH_MS = 30_000; // of relative times
const UNITS = [["year", 31_536_000], ["month", 2_592_000], ["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];

/** US dollars from a decimal string: two digits, four below a dollar, and up to six below a cent. */
export function formatUsd(amount) {
  const value = Number(amount);
  const size = Math.abs(value);
  const digits = size >= 1 || value === 0 ? 2 : size >= 0.01 ? 4 : 6;
  return value.toLocaleString(language(), { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", minimumFractionDigits: Math.min(digits, 4), maximumFractionDigits: digits });
}

/** US dollars with all digits of the decimal string: nano-dollars exceed the precision of a number. */
export function formatExactUsd(amount) {
  const [, sign, whole, digits = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(amount);
  return `${sign}$${BigInt(whole).toLocaleString(language())}.${digits.padEnd(2, "0")}`;
}

/** The same with a sign, also in front of what is added. */
export const formatSignedUsd = (amount) => `${String(amount).startsWith("-") ? "" : "+"}${formatExactUsd(amount)}`;

export const formatCount = (value) => Number(value).toLocaleString(language());
export const formatCompact = (value) => Number(value).toLocaleString(language(), { notation: "compact", maximumFractionDigits: 1 });
export const formatPercent = (share) => share.toLocaleString(language(), { style: "percent", maximumFractionDigits: 1 });

/** A duration in milliseconds: `812 ms`, from a second on `1.58 s`, from ten on `12.3 s`. */
export function formatMs(value) {
  if (value < 1000) return `${value.toLocaleString(language(), { maximumFractionDigits: value < 10 ? 1 : 0 })} ms`;
  const digits = value < 10_000 ? 2 : 1;
  return `${(value / 1000).toLocaleString(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits })} s`;
}

/** US dollars beside an axis: as many digits as its steps need. */
const formatAxisUsd = (amount) => Number(amount).toLocaleString(language(), { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", minimumFractionDigits: 0, maximumFractionDigits: 6 });

export const formatBytes = (value) => words("size_value", { size: value });

/** Date and time of this browser's time zone. */
export const formatTime = (moment) => new Date(moment).toLocaleString(language(), { dateStyle: "medium", timeStyle: "medium" });
export const formatDay = (moment) => new Date(moment).toLocaleDateString(language(), { dateStyle: "medium" });

/** A time relative to now: `3 minutes ago`. */
export function formatRelative(moment) {
  const seconds = (new Date(moment) - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  return new Intl.RelativeTimeFormat(language(), { numeric: "auto" }).format(Math.trunc(seconds / size), unit);
}

const FORMATS = {
  usd: formatUsd,
  usd_exact: formatExactUsd,
  usd_signed: formatSignedUsd,
  usd_axis: formatAxisUsd,
  count: formatCount,
  compact: formatCompact,
  percent: (value) => formatPercent(Number(value)),
  ms: (value) => formatMs(Number(value)),
  bytes: (value) => formatBytes(Number(value)),
  time: formatTime,
  clock: (moment) => new Date(moment).toLocaleTimeString(language()),
  minute: (moment) => new Date(moment).toLocaleString(language(), { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" }),
  day: formatDay,
  relative: formatRelative,
};

/** A value as text, in one of `FORMATS`. */
export const formatValue = (format, value) => FORMATS[format](value);

/** Shows a value in an element as one of `FORMATS`; null and undefined as a dash. Relative times have the absolute time as title. */
export function showValue(element, format, value) {
  delete element.dataset.text;
  if (value === null || value === undefined) {
    delete element.dataset.format;
    element.textContent = "–";
    return element;
  }
  element.dataset.format = format;
  element.dataset.value = value;
  return refresh(element);
}

/** A `span` or other element with a formatted value. */
export const createValue = (format, value, tag = "span") => showValue(document.createElement(tag), format, value);

function refresh(element) {
  const { format, value } = element.dataset;
  element.textContent = FORMATS[format](value);
  if (format === "relative" || format === "day") element.title = formatTime(value);
  return element;
}

const refreshAll = (selector) => document.querySelectorAll(selector).forEach(refresh);
onLanguage(() => refreshAll("[data-format]"));
setInterval(() => refreshAll('[data-format="relative"]'), REFRESH_MS);
