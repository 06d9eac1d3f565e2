// GET /ai/analytics for the pages. Requests run one after the other: the service runs one of a user at a time.

import { fetchJson } from "../service.js";

const PAGE = 1000; // the largest page

let previous = Promise.resolve();

/** The results of a query, flattened: [{ start_time, end_time, ...values }]. Lists are repeated parameters. */
export function fetchAnalytics(query) {
  return enqueue(async () => {
    const rows = [];
    let cursor = 0;
    do {
      const page = await fetchJson(`ai/analytics?${toParameters({ limit: PAGE, ...query, cursor })}`);
      for (const { start_time, end_time, results } of page.items) rows.push(...results.map((values) => ({ start_time, end_time, ...values })));
      cursor = query.limit ? null : page.next_cursor;
    } while (cursor);
    return rows;
  });
}

/** Whether the totals of an interval equal the sums over its rows. */
export const fetchCheck = (query) => enqueue(() => fetchJson(`ai/analytics/check?${toParameters(query)}`));

function enqueue(task) {
  const result = previous.then(task);
  previous = result.catch(() => {});
  return result;
}

/** Query parameters: a list is a repeated parameter; null and undefined are left out. */
export function toParameters(query) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const item of [value].flat()) if (item !== null && item !== undefined && item !== "") parameters.append(name, item);
  }
  return parameters;
}
