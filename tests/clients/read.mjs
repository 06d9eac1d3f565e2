// Reads one event stream to its end with a client that others wrote, and prints what it got as JSON.
//   node read.mjs eventsource | fetch-event-source URL FOLDER-OF-THE-MODULES

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , client, url, folder] = process.argv;
const require = createRequire(pathToFileURL(`${folder}/`));
const got = { events: [], text: "", ids: [] };

function take(name, id, data) {
  const payload = JSON.parse(data);
  got.events.push(name);
  got.ids.push(id);
  if (name === "message") got.text += payload.delta;
}

if (client === "eventsource") {
  const { EventSource } = require("eventsource");
  const source = new EventSource(url);
  await new Promise((resolve, reject) => {
    for (const name of ["start", "message", "done", "failure"]) {
      source.addEventListener(name, (event) => {
        take(name, event.lastEventId, event.data);
        if (name === "done") resolve();
      });
    }
    source.onerror = (event) => event.code === undefined || reject(new Error(`${event.code} ${event.message}`));
  });
  source.close();
} else {
  // It was made for pages: a window and a document are all that it misses here.
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = require("@microsoft/fetch-event-source");
  await fetchEventSource(url, {
    onmessage: ({ event, id, data }) => take(event || "message", id, data),
    onerror(error) {
      throw error; // else it would try again for ever
    },
  });
}
console.log(JSON.stringify(got));
