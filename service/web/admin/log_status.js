// How an answer ended, as a pill.

import { createPill } from "./elements.js";
import "./log_text.js";

const TONES = { completed: "good", no_context: "plain", stopped: "plain", client_gone: "warn" };

/** A pill with the status of an answer or an attempt. */
export const createStatus = (status) => createPill(`status_${status}`, TONES[status] ?? "bad");
