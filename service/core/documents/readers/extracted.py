"""What a reader returns, and the limits and failures that all readers share."""

import datetime as dt
import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from service.core.errors import FileUnreadable, TooLarge
from service.core.text.chunking import TITLE_CHARACTERS_MAX

_NOT_IN_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufffe\uffff]+")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")


class Format(StrEnum):
    """The format of an uploaded file."""

    TEXT = "text"  # plain text, Markdown, source code
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"
    PPTX = "pptx"
    SPREADSHEET = "spreadsheet"  # XLSX, XLSM, XLSB, XLS, ODS
    CSV = "csv"  # or TSV, or with semicolons
    JSON = "json"  # or one JSON value per line
    EPUB = "epub"
    EMAIL = "email"


class Extracted(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a file, with what the file tells about it.

    `has_pages`: page breaks (`core/text/pages.py`) separate pages. `encoding`: of a file that is
    text, in Python's name. An empty title means that the file has none.
    """

    text: str
    format: Format
    title: str = ""
    date: dt.date | None = None
    encoding: str = "binary"
    has_pages: bool = False


class TextBuilder:
    """Collects the parts of a text up to a maximum size in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = self._bytes_left = bytes_max
        self._parts: list[str] = []

    @property
    def bytes_left(self) -> int:
        """How many bytes may still be added."""
        return self._bytes_left

    def add(self, part: str) -> None:
        """Add a part. Raises `TooLarge`."""
        self._bytes_left -= len(part.encode("utf-8", "replace"))
        if self._bytes_left < 0:
            raise TooLarge(f"the text of the file is larger than {self._bytes_max} bytes")
        self._parts.append(part)

    def build(self) -> str:
        """The text, with at most one blank line in a row. Raises `FileUnreadable` if empty."""
        text = clean_text("".join(self._parts))
        if not text:
            raise FileUnreadable("the file contains no text")
        return text


def clean_text(text: str) -> str:
    """Remove control characters, surrounding white space and repeated blank lines."""
    return _BLANK_LINES.sub("\n\n", _NOT_IN_TEXT.sub(" ", text)).strip("\n ")


def clean_title(title: object) -> str:
    """A title from metadata on one line; an empty string if it is missing or a file path."""
    text = " ".join(_NOT_IN_TEXT.sub(" ", str(title or "")).split())
    text = text.removeprefix("Microsoft Word - ").removeprefix("Microsoft PowerPoint - ")
    is_title = any(map(str.isalnum, text)) and not _FILE_NAME.search(text)
    return text[:TITLE_CHARACTERS_MAX] if is_title and text.lower() not in _NO_TITLES else ""


_FILE_NAME = re.compile(
    r"\.(?:docx?|pptx?|xlsx?|indd|qxd|tex|dvi|html?|md|rtf|odt|ai)$", re.IGNORECASE
)
_NO_TITLES = {
    "untitled",
    "untitled document",
    "document",
    "none",
    "title",
    "powerpoint presentation",
}


def parse_date(value: object) -> dt.date | None:
    """The date at the beginning of a value such as `2026-11-29T08:00:00Z` or `D:20261129080000`."""
    match = re.match(r"(?:D:)?(\d{4})-?(\d\d)-?(\d\d)", str(value or "").strip())
    try:
        return dt.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def format_rows(rows: Iterable[Iterable[object]]) -> Iterable[str]:
    """Yield the rows of a table as list items: `- header: value; header: value`.

    The first row with a value is the header if its values are texts and differ, and if another row
    follows. Otherwise rows are values separated by semicolons.
    """
    header: list[str] | None = None
    for row in rows:
        values = [_format_value(value) for value in row]
        if not any(values):
            continue
        if header is None:
            texts = [value for value in values if value]
            is_header = len(set(texts)) == len(texts) > 1 and not any(map(_is_number, texts))
            header = values if is_header else []
            if header:
                continue
        yield _format_row(values, header)


def _format_row(values: list[str], header: list[str]) -> str:
    names = [*header, *[""] * (len(values) - len(header))]
    pairs = [
        f"{name}: {value}" if name else value
        for name, value in zip(names, values, strict=False)
        if value
    ]
    return f"- {'; '.join(pairs)}\n"


def _format_value(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        value = value.date()
    return "" if value is None else " ".join(str(value).split())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,\s%$€¥£/:-]+", text) is not None
