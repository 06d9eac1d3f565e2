// Tables: headings that sort where the service sorts, right-aligned numbers, an empty state, and on phones a card for
// each row. The ARIA roles keep the table's meaning where the phone layout changes `display`.

import { create, createButton } from "./elements.js";
import { createValue } from "./format.js";
import { label } from "../text.js";

/**
 * Creates a table.
 *
 * columns: [{ key, text, hideText?, format?, order?, numeric?, cell?(row) }]. `text` is the key of the heading, which
 *   `hideText` leaves to screen readers; `format` a format of
 *   format.js; `order` the value for the service's order, which makes the heading a button; `cell` returns a node or a
 *   string in place of `row[key]`. Numbers are right-aligned: columns with `numeric` or a format of numbers.
 * caption: key of a text. empty: { text, hint? }, shown without rows.
 * onOpen(row), optional: called for a row whose first cell is activated; that cell becomes a button.
 * onSort(order), optional: called with a column's `order`.
 * Returns { element, setRows(rows), setOrder(order) }.
 */
export function createTable({ columns, caption, empty, onOpen = null, onSort = null, order = null }) {
  const body = asRole(create("tbody"), "rowgroup");
  const headings = columns.map((column) => createHeading(column, onSort));
  const table = asRole(create("table", {},
    create("caption", { text: caption, className: "visually-hidden" }),
    asRole(create("thead", {}, asRole(create("tr", {}, ...headings), "row")), "rowgroup"),
    body), "table");
  const none = create("div", { className: "empty-state", hidden: true }, create("p", { text: empty.text }), empty.hint ? create("p", { text: empty.hint, className: "note" }) : null);
  const element = create("div", { className: "table" }, table, none);
  const setOrder = (chosen) => headings.forEach((heading, n) => markOrder(heading, columns[n], chosen));
  const setRows = (rows) => {
    body.replaceChildren(...rows.map((row) => createRow(columns, row, onOpen)));
    table.hidden = rows.length === 0;
    none.hidden = rows.length > 0;
  };
  setOrder(order);
  setRows([]);
  none.hidden = true; // until the first rows
  return { element, setRows, setOrder };
}

const NUMBERS = ["usd", "usd_exact", "usd_signed", "count", "compact", "percent", "ms", "bytes"];
const isNumeric = ({ numeric, format }) => numeric ?? NUMBERS.includes(format);

function asRole(element, role) {
  element.setAttribute("role", role);
  return element;
}

function createHeading(column, onSort) {
  const heading = asRole(create("th", { scope: "col" }), "columnheader");
  heading.classList.toggle("number", isNumeric(column));
  if (column.order && onSort) heading.append(createButton(column.text, () => onSort(column.order), { kind: "sort" }));
  else heading.append(create("span", { text: column.text, className: column.hideText ? "visually-hidden" : "" }));
  return heading;
}

// The service sorts in one direction for each order: `-name` is descending.
function markOrder(heading, { order }, chosen) {
  if (!order) return;
  const direction = order.startsWith("-") ? "descending" : "ascending";
  heading.setAttribute("aria-sort", order === chosen ? direction : "none");
}

function createRow(columns, row, onOpen) {
  return asRole(create("tr", {}, ...columns.map((column, n) => createCell(column, row, n === 0 ? onOpen : null))), "row");
}

function createCell(column, row, onOpen) {
  const cell = asRole(create("td"), "cell");
  cell.classList.toggle("number", isNumeric(column));
  const name = column.hideText ? null : create("span", { text: column.text, className: "cell-name" });
  name?.setAttribute("aria-hidden", true);
  const content = column.cell ? column.cell(row) : column.format ? createValue(column.format, row[column.key]) : (row[column.key] ?? "–");
  cell.classList.toggle("none", content === "–" || content.textContent === "–"); // left out on phones
  if (!onOpen) {
    cell.append(...(name ? [name] : []), content);
    return cell;
  }
  const button = create("button", { type: "button", className: "open" }, content);
  button.addEventListener("click", () => onOpen(row));
  cell.append(...(name ? [name] : []), button);
  return cell;
}

/** A bar whose length is `share`, from 0 to 1, with a text as its accessible name. `tone`: `plain`, `warn` or `bad`. */
export function createBar(share, text, values = {}, tone = "plain") {
  const fill = create("span");
  fill.style.width = `${Math.min(Math.max(share, 0), 1) * 100}%`;
  const bar = create("span", { className: "bar" }, fill);
  bar.dataset.tone = tone;
  for (const [name, value] of Object.entries({ role: "meter", "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": Math.min(Math.max(share, 0), 1) })) bar.setAttribute(name, value);
  label(bar, text, values);
  return bar;
}
