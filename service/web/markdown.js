// Renders the markdown of an answer as harmless elements; the only module that uses the rendering libraries. A model may
// be manipulated to write anything, so nothing is fetched: tags, images and links are shown as text. The result is
// sanitised in addition, with a short list of allowed elements.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";

const no = () => undefined; // disables a tokenizer
const marked = new Marked({
  gfm: true,
  breaks: true,
  tokenizer: { html: no, tag: no, def: no, reflink: no, autolink: no, url: no }, // [1] is a citation, not a link defined elsewhere
  renderer: {
    link({ href, tokens }) {
      return `${this.parser.parseInline(tokens)} <span class="address">${escape(href)}</span>`;
    },
    image: ({ raw }) => escape(raw),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code: ({ text }) => `<pre tabindex="0"><code>${escape(text)}</code></pre>`,
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6); // below the question, which is a heading of the page
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});
const HARMLESS = {
  ALLOWED_TAGS: [
    ..."p br hr strong em del code pre blockquote ul ol li h3 h4 h5 h6 table thead tbody tr th td span".split(" "),
    "#text",
  ],
  ALLOWED_ATTR: ["class", "start", "tabindex"],
  RETURN_DOM_FRAGMENT: true,
};

/**
 * Keeps `element` showing `text` as markdown while it grows. Only changed blocks are rebuilt, so that the selection and
 * the scroll position in the others are preserved. `dress` is called with each new block.
 */
export function createMarkdown(element, dress) {
  let blocks = []; // { raw, nodes }

  return function show(text) {
    const tokens = marked.lexer(text).filter((token) => token.type !== "space");
    tokens.forEach((token, n) => {
      if (blocks[n]?.raw === token.raw) return;
      const fragment = DOMPurify.sanitize(marked.parser([token]), HARMLESS);
      dress(fragment);
      const nodes = [...fragment.childNodes];
      const old = blocks[n]?.nodes ?? [];
      if (old.length) old[0].before(...nodes);
      else element.append(...nodes);
      for (const node of old) node.remove();
      blocks[n] = { raw: token.raw, nodes };
    });
    for (const { nodes } of blocks.splice(tokens.length)) for (const node of nodes) node.remove();
  };
}

function escape(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
