// The system page: health, database, recording, providers, index and replicas.

import { fetchReadiness } from "../service.js";
import { create, createPanel, createPill, createTerms, createTiles, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { openPage, refreshWhileVisible } from "./shell.js";
import { createBar, createTable } from "./table.js";
import "./system_text.js";

const REFRESH_MS = 5000;
const count = (value) => createValue("count", value);
const yesNo = (value) => create("span", { text: value ? "system_yes" : "system_no" });
const TONES = { ready: "good", degraded: "warn", stopping: "bad", ok: "good", intact: "good", checking: "plain", done: "good", running: "plain", delayed: "warn", failed: "bad", damaged: "bad", serving: "good" };
const pill = (key, state) => createPill(key, TONES[state] ?? "warn");

openPage("admin/system", async (main) => {
  const problem = create("p", { className: "note" });
  problem.setAttribute("role", "alert");
  const content = create("div");
  main.append(create("p", { className: "lead", text: "system_lead", values: { seconds: REFRESH_MS / 1000 } }), problem, content);
  await refreshWhileVisible(async () => {
    try {
      const health = await fetchReadiness();
      content.replaceChildren(...createContent(health));
      showProblem(problem, null);
    } catch (failure) {
      showProblem(problem, failure);
    }
  }, REFRESH_MS);
});

function createContent(health) {
  return [
    createSummary(health),
    create("div", { className: "panels two" }, createDatabase(health), createIndex(health), createRecording(health), createJournal(health)),
    createProviders(health),
    create("div", { className: "panels" }, createReplicas(health), ...(health.local_model ? [createLocalModel(health.local_model)] : [])),
  ];
}

function createSummary({ status, degraded, model, version, queue, answers }) {
  const names = degraded.join(", ");
  const tasks = create("span", names ? { text: "system_degraded_tasks", values: { names } } : { text: "system_all_tasks" });
  const identifier = (content) => create("span", { content, className: "short" });
  return createTiles([
    { text: "system_status", value: pill(`system_${status}`, status), note: tasks },
    { text: "system_in_progress", value: count(answers.in_progress) },
    { text: "system_waiting", value: count(queue.waiting), note: create("span", { text: "system_waiting_note", values: { capacity: queue.capacity } }) },
    { text: "system_model", value: identifier(model) },
    { text: "system_version", value: identifier(version) },
    { text: "system_updated", value: create("span", { className: "short" }, createValue("clock", new Date().toISOString())) },
  ]);
}

function createDatabase({ database, integrity, database_probe: probe }) {
  const isAvailable = database === "ok";
  return createPanel("system_database", [createTerms([
    ["system_state", isAvailable ? pill("system_available", "ok") : create("span", { content: database, className: "problem" })],
    ["system_integrity", pill(`system_${integrity.state}`, integrity.state)],
    ["system_damaged_rows", count(integrity.damaged_rows)],
    ...(probe ? [["system_outages", count(probe.outages)]] : []),
  ])]);
}

function createRecording({ queue, writer, recovery }) {
  return createPanel("system_records", [createTerms([
    ["system_written", count(writer.written)],
    ["system_open", count(queue.open)],
    ["system_writer_failures", count(writer.failures)],
    ["system_quarantined", count(writer.quarantined + recovery.quarantined)],
    ["system_recovery", pill(`system_${recovery.state}`, recovery.state)],
    ["system_recovered", count(recovery.rows)],
  ])]);
}

function createJournal({ journal }) {
  return createPanel("system_journal", [createTerms([
    ["system_segments", count(journal.segments)],
    ["system_bytes", createValue("bytes", journal.bytes)],
    ["system_unsynced", createValue("bytes", journal.unsynced_bytes)],
    ["system_spool", yesNo(journal.spool)],
    ["system_lean", count(journal.lean)],
    ["system_journal_failures", count(journal.failures)],
  ])]);
}

function createIndex({ reindexing, merging, embedding }) {
  const parts = [
    ...createProgress("system_reindexing", reindexing.state, reindexing.done, reindexing.documents),
    createTerms([["system_merging", create("span", { text: merging.pending ? "system_pending" : "system_idle" })]]),
    ...(embedding ? createProgress("system_embedding", embedding.state, embedding.done, embedding.texts) : [create("p", { className: "note", text: "system_embedding_off" })]),
  ];
  return createPanel("system_index", parts);
}

function createProgress(text, state, done, total) {
  const values = { done, total };
  const figure = total ? create("span", { text: "system_progress", values }) : create("span", { text: "system_current" });
  const line = create("div", { className: "row-between progress-line" }, create("span", { text, className: "term" }), create("span", {}, figure, " ", pill(`system_${state}`, state)));
  return total ? [line, createBar(done / total, "system_progress", values)] : [line];
}

function createProviders({ providers }) {
  const table = createTable({
    caption: "system_providers",
    empty: { text: "system_providers_none", hint: "system_providers_hint" },
    columns: [
      { key: "name", text: "system_provider" },
      { key: "state", text: "system_state", cell: ({ state }) => pill(`system_health_${state}`, state) },
      { key: "failures", text: "system_failures", format: "count" },
      { key: "reason", text: "system_reason" },
      { key: "retry_ms", text: "system_retry", format: "ms" },
    ],
  });
  table.setRows(Object.entries(providers).map(([name, values]) => ({ name, ...values, retry_ms: values.retry_seconds ? values.retry_seconds * 1000 : null })));
  return createPanel("system_providers", [table.element]);
}

function createReplicas({ membership }) {
  if (!membership) return createPanel("system_replicas", [create("p", { className: "note", text: "system_single" })]);
  return createPanel("system_replicas", [createTerms([
    ["system_replicas_count", count(membership.replicas)],
    ["system_slot", count(membership.slot)],
    ["system_lease", yesNo(membership.lease)],
    ["system_leader", yesNo(membership.leader)],
  ])]);
}

function createLocalModel({ state, deaths }) {
  const key = state === "failed" ? "system_failed" : `system_local_${state}`;
  return createPanel("system_local_model", [createTerms([
    ["system_state", pill(key, state)],
    ["system_deaths", count(deaths)],
  ])]);
}
