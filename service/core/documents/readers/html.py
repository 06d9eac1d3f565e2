"""Reads HTML with selectolax (lexbor): the main content as Markdown, without active content.

The tree is traversed in a loop, because recursion would fail at the depth of a hostile page.
"""

import datetime as dt
import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_title,
    parse_date,
)
from service.core.text.decoding import decode_text

_REMOVED = {
    "audio", "button", "canvas", "dialog", "embed", "head", "iframe", "input", "math", "nav",
    "noscript", "object", "option", "script", "select", "style", "svg", "template", "textarea",
    "video",
}  # fmt: skip
_REMOVED_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary", "dialog"}
_REMOVED_OUTSIDE_MAIN = {"aside", "footer"}
_MAIN = ("main", "[role=main]", "article", "#content")
_MAIN_SHARE_MIN = 0.25  # of the text of the page; a smaller element is not the main content
_LIST_DEPTH_MAX = 3  # deeper lists are not indented further
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_DATES = (
    "meta[property='article:modified_time']", "meta[property='article:published_time']",
    "meta[name='date']", "meta[name='dcterms.modified']", "meta[name='DC.date']",
)  # fmt: skip
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCKS = {
    "address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "header", "hr", "li", "main", "ol", "p", "pre",
    "section", "summary", "table", "ul", *_HEADINGS,
}  # fmt: skip
_SPACE = re.compile(r"[ \t\n\r\f\u00a0]+")
_LINE_BREAK = "\x01"  # stands for <br> until white space is collapsed
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{1,40})|encoding=[\"']([\w-]{1,40})",
    re.IGNORECASE,
)
_ENCODING_NAMES = {"shift_jis": "cp932", "x-sjis": "cp932", "iso-8859-1": "cp1252"}


def read_html(data: bytes, bytes_max: int) -> Extracted:
    """Read a page. Raises `NotText`, `FileUnreadable`, `TooLarge`."""
    text, encoding = decode_html(data)
    tree = LexborHTMLParser(text)
    title_node = tree.css_first("title")
    title = clean_title(title_node.text(deep=True)) if title_node else ""
    date = next(filter(None, (_read_meta_date(tree, selector) for selector in _DATES)), None)
    builder = TextBuilder(bytes_max)
    builder.add(_convert_main(tree))
    return Extracted(
        text=builder.build(), format=Format.HTML, title=title, date=date, encoding=encoding
    )


def decode_html(data: bytes) -> tuple[str, str]:
    """Decode as the page declares, or by its bytes. Raises `NotText`."""
    match = _CHARSET.search(data, 0, 4096)
    if match and not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        name = (match[1] or match[2]).decode("ascii").lower()
        name = _ENCODING_NAMES.get(name, name)
        try:
            return data.decode(name), name
        except (LookupError, UnicodeError):
            pass
    return decode_text(data)


def _read_meta_date(tree: LexborHTMLParser, selector: str) -> dt.date | None:
    node = tree.css_first(selector)
    return parse_date(node.attributes.get("content")) if node else None


def convert_html(html: str) -> str:
    """Convert the main content of a page to Markdown."""
    return _convert_main(LexborHTMLParser(html))


def _convert_main(tree: LexborHTMLParser) -> str:
    body = tree.body
    if body is None:
        return ""
    whole = _Converter(body, is_main=False).convert()
    for selector in _MAIN:
        nodes = tree.css(selector)
        if len(nodes) == 1:
            main = _Converter(nodes[0], is_main=True).convert()
            if len(main) >= _MAIN_SHARE_MIN * len(whole):
                return main
    return whole


class _Converter:
    """Converts an element to Markdown, in one pass over the tree."""

    def __init__(self, root: LexborNode, *, is_main: bool) -> None:
        self._root, self._is_main = root, is_main
        self._blocks: list[str] = []
        self._inline: list[str] = []  # of the current block
        self._prefix = ""  # of the current block: a heading or list marker
        self._lists: list[int | None] = []  # per open list: the number of the last item, if any

    def convert(self) -> str:
        """The Markdown."""
        node = self._root
        while True:
            child = node.child if self._enter(node) else None
            if child is not None:
                node = child
                continue
            while True:
                self._leave(node)
                if node.mem_id == self._root.mem_id:
                    self._end_block()
                    return "".join(self._blocks)
                if node.next is not None:
                    node = node.next
                    break
                node = node.parent or self._root

    def _enter(self, node: LexborNode) -> bool:
        """Process the beginning of a node. Returns whether its children are processed as well."""
        tag = node.tag
        if node.is_text_node:
            self._inline.append(node.text_content or "")
            return False
        if not node.is_element_node or self._is_removed(node, tag or ""):
            return False
        if tag == "br":
            self._inline.append(_LINE_BREAK)
        if tag not in _BLOCKS:
            return True
        self._end_block()
        if tag == "pre":
            self._add_code(node)
            return False
        if tag == "table" and (rows := _read_table(node)):
            self._blocks.append("".join(rows) + "\n")
            return False
        self._begin_block(tag or "")
        return True

    def _is_removed(self, node: LexborNode, tag: str) -> bool:
        if tag in _REMOVED or (not self._is_main and tag in _REMOVED_OUTSIDE_MAIN):
            return True
        if tag == "header" and not self._is_main and node.css_first("h1, h2") is None:
            return True
        attributes = node.attributes
        return bool(attributes) and (
            "hidden" in attributes
            or attributes.get("aria-hidden") == "true"
            or attributes.get("role") in _REMOVED_ROLES
            or _HIDDEN.search(attributes.get("style") or "") is not None
        )

    def _begin_block(self, tag: str) -> None:
        if tag in {"ul", "ol"}:
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._prefix = self._number_item()
        elif tag in _HEADINGS:
            self._prefix = _HEADINGS[tag]

    def _number_item(self) -> str:
        indent = "   " * min(max(0, len(self._lists) - 1), _LIST_DEPTH_MAX)
        number = self._lists[-1] if self._lists else None
        if number is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number + 1}. "

    def _leave(self, node: LexborNode) -> None:
        if node.is_text_node or node.tag not in _BLOCKS:
            return
        self._end_block()
        if node.tag in {"ul", "ol"} and self._lists:
            self._lists.pop()
            if not self._lists:
                self._blocks.append("\n")

    def _end_block(self) -> None:
        text = _SPACE.sub(" ", "".join(self._inline)).strip()
        self._inline.clear()
        lines = [line.strip() for line in text.split(_LINE_BREAK)]
        if not any(lines):
            return  # a marker waits for the text of its item
        if self._prefix.startswith("#"):
            text = " ".join(lines).rstrip("¶# ")
        else:
            text = "\n".join(lines).strip("\n")
        self._blocks.append(f"{self._prefix}{text}" + ("\n" if self._lists else "\n\n"))
        self._prefix = ""

    def _add_code(self, node: LexborNode) -> None:
        code = node.text(deep=True).strip("\n").rstrip()
        if code:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
            self._blocks.append(f"{fence}\n{code}\n{fence}\n\n")


def _read_table(table: LexborNode) -> list[str]:
    """The rows of a table as Markdown; none if it arranges a page (nested tables, one column)."""
    if table.css_first("table table, td h1, td h2, td ul, td p + p, td pre") is not None:
        return []
    rows = [
        [_read_cell(cell) for cell in _iterate_children(row) if cell.tag in {"td", "th"}]
        for row in table.css("tr")
    ]
    rows = [row for row in rows if any(row)]
    columns = max(map(len, rows), default=0)
    if columns < 2:
        return []
    caption = table.css_first("caption")
    lines = [f"{_read_cell(caption)}\n\n"] if caption is not None else []
    for n, row in enumerate(rows):
        lines.append(f"| {' | '.join([*row, *[''] * (columns - len(row))])} |\n")
        if n == 0:
            lines.append(f"|{'---|' * columns}\n")
    return lines


def _iterate_children(node: LexborNode) -> Iterator[LexborNode]:
    child = node.child
    while child is not None:
        yield child
        child = child.next


def _read_cell(cell: LexborNode) -> str:
    return _SPACE.sub(" ", cell.text(deep=True, separator=" ")).strip().replace("|", "\\|")
