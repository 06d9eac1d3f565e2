// A panel that loads by itself: its problems are shown in it, and others are not affected.

import { create, createPanel, showProblem } from "./elements.js";

/** The base of such panels: `fetch()` loads and shows; `attempt(action)` shows its problem. */
export class LoadedPanel {
  /** `text`: key of the heading; children and tools as of `createPanel`. */
  constructor(text, children, tools = []) {
    this.problem = create("p", { className: "note" });
    this.problem.setAttribute("role", "alert");
    this.element = createPanel(text, [this.problem, ...children], tools);
  }

  load() {
    return this.attempt(() => this.fetch());
  }

  async attempt(action) {
    try {
      await action();
      showProblem(this.problem, null);
    } catch (failure) {
      showProblem(this.problem, failure);
    }
  }
}
