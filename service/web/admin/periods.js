// The period and the buckets of a page, chosen by the user and kept in the address.

import { create, createField, createSelect } from "./elements.js";
import { label, say } from "../text.js";

const MINUTE = 60_000;
const QUARTER = 15 * MINUTE; // stored sums: intervals of whole quarters need no rows
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const BUCKETS_MAX = 1000; // of the service
const PERIODS = ["24h", "7d", "30d", "month", "custom"];

export const timezone = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** Reads the choice from the address: { period, bucket, from, to }; days are local, `to` is inclusive. */
export function readPeriod() {
  const parameters = new URLSearchParams(location.search);
  const period = PERIODS.includes(parameters.get("period")) ? parameters.get("period") : "7d";
  const [from, to] = ["from", "to"].map((name) => (isDay(parameters.get(name)) ? parameters.get(name) : formatLocalDay(new Date())));
  const bucket = ["hour", "day"].includes(parameters.get("bucket")) ? parameters.get("bucket") : null;
  return { period, bucket, from, to };
}

/** Puts a choice into the address, so that a reload and a link show the same. */
export function storePeriod({ period, bucket, from, to }, others = {}) {
  const custom = period === "custom" ? { from, to } : {};
  const parameters = new URLSearchParams({ period, ...(bucket ? { bucket } : {}), ...custom, ...others });
  history.replaceState(null, "", `?${parameters}`);
}

/** The interval of a choice in ms, { since, until, bucket }: whole quarters of an hour, days of this browser's time zone. */
export function computeInterval({ period, bucket, from, to }, now = Date.now()) {
  const until = Math.ceil((now + 1) / QUARTER) * QUARTER;
  const [since, end] = {
    "24h": () => [until - DAY, until],
    "7d": () => [addDays(now, -6), until],
    "30d": () => [addDays(now, -29), until],
    month: () => [startMonth(now), until],
    custom: () => [startDay(from), addDays(startDay(to), 1)],
  }[period]();
  const hours = (end - since) / HOUR;
  const chosen = bucket ?? (hours <= 7 * 24 + 24 ? "hour" : "day");
  return { since, until: Math.max(end, since), bucket: chosen === "hour" && hours > BUCKETS_MAX - 2 ? "day" : chosen };
}

/** The beginnings of all buckets of an interval, also of empty ones: the service leaves those out. */
export function listBuckets({ since, until, bucket }) {
  const starts = [];
  let start = since;
  while (start < until && starts.length < BUCKETS_MAX) {
    starts.push(start);
    start = bucket === "hour" ? (Math.floor(start / HOUR) + 1) * HOUR : addDays(start, 1);
  }
  return starts;
}

export const bucketLength = (bucket) => (bucket === "hour" ? HOUR : DAY);

const isDay = (text) => /^\d{4}-\d\d-\d\d$/.test(text ?? "") && !Number.isNaN(startDay(text));
const startDay = (text) => new Date(`${text}T00:00`).getTime();
const startMonth = (now) => new Date(new Date(now).getFullYear(), new Date(now).getMonth(), 1).getTime();
function addDays(moment, days) {
  const date = new Date(moment);
  return new Date(date.getFullYear(), date.getMonth(), date.getDate() + days).getTime();
}
function formatLocalDay(date) {
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** A row of buttons of which one is pressed. `options`: pairs of value and key of a text. */
export function createSegments(text, options, value, onChange) {
  const buttons = options.map(([option, key]) => {
    const button = say(create("button", { type: "button" }), key);
    button.addEventListener("click", () => select(option));
    return [option, button];
  });
  const mark = (chosen) => buttons.forEach(([option, button]) => button.setAttribute("aria-pressed", option === chosen));
  const select = (chosen) => {
    mark(chosen);
    onChange(chosen);
  };
  mark(value);
  const group = create("div", { className: "segments" }, ...buttons.map(([, button]) => button));
  group.setAttribute("role", "group");
  label(group, text);
  return group;
}

/** The controls of a choice; `onChange(choice)` is called with each new one. */
export function createPeriodControls(choice, onChange) {
  const change = (changed) => {
    Object.assign(choice, changed);
    days.hidden = choice.period !== "custom";
    bucket.value = computeInterval(choice).bucket;
    onChange(choice);
  };
  const createDay = (name) => {
    const input = create("input", { type: "date", value: choice[name], required: true });
    input.addEventListener("change", () => isDay(input.value) && change({ [name]: input.value }));
    return input;
  };
  const days = create("div", { className: "toolbar days", hidden: choice.period !== "custom" }, createField("period_from", createDay("from")), createField("period_to", createDay("to")));
  const bucket = createSelect([["hour", "bucket_hour"], ["day", "bucket_day"]], computeInterval(choice).bucket, (value) => change({ bucket: value }));
  label(bucket, "bucket");
  const segments = createSegments("period", PERIODS.map((name) => [name, `period_${name}`]), choice.period, (period) => change({ period, bucket: null }));
  return create("div", { className: "toolbar" }, segments, days, bucket);
}
