// The documents of all users: filters, text in the drawer, deletion.

import { openDocument } from "../drawer.js";
import { deleteDocument, fetchJson } from "../service.js";
import { languageOf, say } from "../text.js";
import { toParameters } from "./analytics.js";
import { confirmAction } from "./dialogs.js";
import { create, createButton, createField, createPill, showProblem } from "./elements.js";
import { createValue } from "./format.js";
import { openPage } from "./shell.js";
import { createTable } from "./table.js";
import "./documents_text.js";

const PAGE = 50;
const FILTERS = { user_id: "documents_filter_owner", tag: "documents_filter_tag", source: "documents_filter_source" };

openPage("admin/documents", async (main) => {
  const list = new DocumentList();
  main.append(create("p", { className: "lead", text: "documents_lead" }), list.element);
  await list.load();
});

/** The list with its filters, which are kept in the address. */
class DocumentList {
  #rows = [];
  #cursor = null;
  #loads = 0; // the number of the newest load: results of older ones are dropped
  #status = create("p", { className: "note" });
  #more = createButton("more", () => this.load(this.#cursor));
  #inputs = new Map();
  #table = createTable({
    caption: "documents",
    empty: { text: "documents_no_match", hint: "documents_no_match_hint" },
    onOpen: ({ document_id: id }) => openDocument(id),
    columns: [
      { key: "title", text: "documents_title", cell: ({ title }) => create("span", { content: title, lang: languageOf(title) }) },
      { key: "user_id", text: "documents_owner" },
      { key: "shared", text: "documents_state", cell: ({ shared }) => createPill(shared ? "documents_shared" : "documents_private", shared ? "good" : "plain") },
      { key: "format", text: "documents_format" },
      { key: "tags", text: "documents_tags", cell: ({ tags }) => tags.join(", ") || "–" },
      { key: "characters", text: "documents_characters", format: "count" },
      { key: "chunks", text: "documents_chunks", format: "count" },
      { key: "original_bytes", text: "documents_size", format: "bytes" },
      { key: "created_at", text: "documents_added_at", cell: ({ created_at: time }) => createValue("relative", time) },
      { key: "actions", text: "actions", hideText: true, cell: (row) => create("span", { className: "actions" }, createButton("documents_delete", () => this.#delete(row), { kind: "danger" })) },
    ],
  });

  constructor() {
    this.#status.setAttribute("role", "status");
    this.#more.hidden = true;
    const panel = create("section", { className: "panel" }, this.#table.element, create("p", { className: "actions more" }, this.#more));
    this.element = create("div", {}, this.#createFilters(), this.#status, panel);
  }

  #createFilters() {
    const given = new URLSearchParams(location.search);
    const fields = Object.entries(FILTERS).map(([name, text]) => {
      const input = create("input", { name, value: given.get(name) ?? "", autocomplete: "off", spellcheck: false });
      this.#inputs.set(name, input);
      return createField(text, input);
    });
    const apply = create("button", { type: "submit", text: "documents_filter", className: "quiet" });
    const reset = createButton("documents_reset", () => {
      for (const input of this.#inputs.values()) input.value = "";
      this.load();
    });
    const form = create("form", { className: "toolbar" }, ...fields, apply, reset);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    return form;
  }

  /** Loads the first page, or the one at a cursor. */
  async load(cursor = null) {
    const filters = Object.fromEntries([...this.#inputs].map(([name, input]) => [name, input.value.trim()]));
    const query = toParameters(filters).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    const number = ++this.#loads;
    try {
      const page = await fetchJson(`ai/documents?${toParameters({ limit: PAGE, cursor, ...filters })}`);
      if (number !== this.#loads) return;
      this.#rows = cursor ? [...this.#rows, ...page.items] : page.items;
      this.#cursor = page.next_cursor;
      this.#show();
      showProblem(this.#status, null);
      say(this.#status, "documents_loaded", { count: this.#rows.length });
    } catch (problem) {
      showProblem(this.#status, problem);
    }
  }

  #show() {
    this.#table.setRows(this.#rows);
    this.#more.hidden = this.#cursor === null;
  }

  async #delete({ document_id: id, title }) {
    const values = { title };
    if (!(await confirmAction({ title: "documents_delete_title", detail: "documents_delete_detail", action: "documents_delete", values }))) return;
    try {
      await deleteDocument(id);
      this.#rows = this.#rows.filter((row) => row.document_id !== id);
      this.#show();
      showProblem(this.#status, null);
      say(this.#status, "documents_was_deleted", values);
    } catch (problem) {
      showProblem(this.#status, problem);
    }
  }
}
