// The card beside a citation mark: the title of the source and the sentence that supports the answer.

import { readAround, readMarked } from "./passage.js";
import { isUnverified } from "./sources.js";
import { languageOf } from "./text.js";

const BEFORE_MAX = 60; // characters before the sentence, in its paragraph
const AFTER_MAX = 140;
const GAP = 8; // pixels between card and mark, and to the edges of the window
const $ = (id) => document.getElementById(id);

addEventListener("scroll", hideCard, { passive: true, capture: true });
addEventListener("keydown", ({ key }) => key === "Escape" && hideCard());

/** Shows the card of a source at a citation mark. */
export function showCard(anchor, source) {
  const card = $("citation-card");
  const title = card.querySelector(".title");
  title.textContent = source.querySelector(".title").textContent;
  title.lang = languageOf(title.textContent);
  fillQuote(card.querySelector(".quote"), source.querySelector("blockquote"));
  card.querySelector(".why-unverified").hidden = !isUnverified(source);
  anchor.setAttribute("aria-describedby", card.id);
  card.showPopover();
  place(card, anchor.getBoundingClientRect());
}

export function hideCard() {
  const card = $("citation-card");
  if (card?.matches(":popover-open")) card.hidePopover();
}

// The marked sentence with some of its paragraph; without one, the beginning of the passage.
function fillQuote(quote, passage) {
  quote.lang = passage.lang;
  if (!passage.querySelector("mark")) {
    quote.textContent = cut(passage.textContent, BEFORE_MAX + AFTER_MAX);
    return;
  }
  const [before, after] = readAround(passage);
  const mark = Object.assign(document.createElement("mark"), { textContent: readMarked(passage) });
  const start = before.length > BEFORE_MAX ? `…${before.slice(-BEFORE_MAX)}` : before;
  quote.replaceChildren(start, mark, cut(after, AFTER_MAX));
}

const cut = (text, max) => (text.length > max ? `${text.slice(0, max)}…` : text);

// Below the mark, or above it if there is no room.
function place(card, mark) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.max(GAP, Math.min(mark.left + mark.width / 2 - width / 2, innerWidth - width - GAP));
  const below = mark.bottom + GAP;
  const top = below + height > innerHeight ? mark.top - GAP - height : below;
  card.style.left = `${left}px`;
  card.style.top = `${Math.max(GAP, top)}px`;
}
