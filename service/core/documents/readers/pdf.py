"""Reads PDF files with PDFium: paragraphs and headings by layout, with page breaks.

PDFium returns characters in the order of the page's content, in lines. A paragraph ends where the
distance to the next line is larger than usual, where the size of the font changes, or where a list
item begins. Short paragraphs in a larger font are headings.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import byref, c_double
from itertools import pairwise
from statistics import median_low

import msgspec
import pypdfium2
import pypdfium2.raw as pdfium

from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_title,
    parse_date,
)
from service.core.errors import FileUnreadable, TooLarge
from service.core.text.pages import PAGE_BREAK

PAGES_MAX = 10_000
HEADING_SIZE_MIN = 1.15  # size of the font of a heading, as a multiple of the usual one
HEADING_CHARACTERS_MAX = 150
LINE_DISTANCE_MAX = 1.35  # within a paragraph, as a multiple of the usual distance
LETTERS_PER_PAGE_MIN = 1  # with fewer, the pages are images

_HYPHENS = "\x02\xad\ufffe"  # PDFium's marks for a hyphen at the end of a line
_DIVIDED = re.compile(rf"([\w-]*)[{_HYPHENS}]([\w-]*)")
_LEADERS = re.compile(r"\s*(?:[.…·]\s?){5,}")  # dots between an entry and its page number
_ITEM = re.compile(r"(?:[-*•‣◦▪–●■・]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])\s")
_WIDE = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；][\"'”’）)\]」』]*$")


class Line(msgspec.Struct):
    """A line of a page: its text, and the height and the baseline of a character."""

    text: str
    size: float
    bottom: float


def read_pdf(data: bytes, bytes_max: int) -> Extracted:
    """Read a PDF. Raises `FileUnreadable`, `TooLarge`."""
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise FileUnreadable(_describe_failure(error.err_code)) from error
    if len(pdf) > PAGES_MAX:
        raise TooLarge(f"the PDF has {len(pdf)} pages, more than {PAGES_MAX}")
    builder = TextBuilder(bytes_max)
    pages = [_read_lines(pdf, n, builder) for n in range(len(pdf))]
    letters = sum(sum(map(str.isalnum, line.text)) for lines in pages for line in lines)
    if letters < max(1, LETTERS_PER_PAGE_MIN * len(pages)):
        raise FileUnreadable(
            "the PDF contains no text layer, only images; run OCR first, for example `ocrmypdf`"
        )
    metadata = pdf.get_metadata_dict(skip_empty=True)
    return Extracted(
        text=_join_pages(pages),
        format=Format.PDF,
        title=clean_title(metadata.get("Title")),
        date=parse_date(metadata.get("ModDate")) or parse_date(metadata.get("CreationDate")),
        has_pages=True,
    )


def _describe_failure(code: int | None) -> str:
    if code in {pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY}:
        return "the PDF is encrypted; remove its password first, for example with `qpdf --decrypt`"
    return "the PDF is damaged or incomplete"


def _read_lines(pdf: pypdfium2.PdfDocument, index: int, builder: TextBuilder) -> list[Line]:
    """Read the lines of a page; a page that PDFium cannot read has none."""
    try:
        page = pdf[index]
    except pypdfium2.PdfiumError:
        return []
    text_page = page.get_textpage()
    text = text_page.get_text_range()
    builder.add(text)
    lines, position = [], 0
    for line in text.split("\n"):
        if stripped := line.strip():
            # The middle is more typical than the beginning, which may be a bullet.
            lines.append(
                _measure_line(
                    text_page, stripped, position + line.find(stripped[len(stripped) // 2 :])
                )
            )
        position += len(line) + 1
    text_page.close()
    page.close()
    return lines


def _measure_line(text_page: pypdfium2.PdfTextPage, text: str, index: int) -> Line:
    box = pdfium.FS_RECTF()
    if not pdfium.FPDFText_GetLooseCharBox(text_page, index, byref(box)):
        return Line(text, 0, 0)
    x, y = c_double(), c_double()
    pdfium.FPDFText_GetCharOrigin(text_page, index, byref(x), byref(y))
    return Line(text, round(abs(box.top - box.bottom), 1), y.value)


def _join_pages(pages: Sequence[Sequence[Line]]) -> str:
    sizes: Counter[float] = Counter()
    words: set[str] = set()
    for lines in pages:
        for line in lines:
            sizes[line.size] += len(line.text)
            words.update(re.findall(r"[\w-]+", line.text))
    usual = sizes.most_common(1)[0][0]
    text = ""
    parts: list[str] = []
    for lines in pages:
        paragraphs = list(_join_paragraphs(lines, usual, words))
        if parts:
            continues = bool(paragraphs) and _continues(text, paragraphs[0])
            parts.append(f" {PAGE_BREAK}" if continues else f"\n{PAGE_BREAK}\n")
        text = "\n\n".join(paragraphs)
        parts.append(text)
    return "".join(parts)


def _continues(text: str, following: str) -> bool:
    """Whether a paragraph continues on the next page."""
    return bool(text) and not _SENTENCE_END.search(text) and following[:1].islower()


def _join_paragraphs(lines: Sequence[Line], usual: float, words: set[str]) -> Iterator[str]:
    """Yield the paragraphs of a page; headings begin with `## `."""
    distances = [a.bottom - b.bottom for a, b in pairwise(lines) if a.bottom > b.bottom]
    distance_max = LINE_DISTANCE_MAX * median_low(distances) if distances else 0.0
    paragraph: list[Line] = []
    for line in lines:
        if paragraph and _begins_paragraph(paragraph[-1], line, distance_max):
            yield _format_paragraph(paragraph, usual, words)
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield _format_paragraph(paragraph, usual, words)


def _begins_paragraph(previous: Line, line: Line, distance_max: float) -> bool:
    if abs(previous.size - line.size) > 0.1 * max(previous.size, line.size):
        return True
    if _LEADERS.search(previous.text):
        return True
    return previous.bottom - line.bottom > distance_max or bool(_ITEM.match(line.text))


def _format_paragraph(lines: Sequence[Line], usual: float, words: set[str]) -> str:
    text = lines[0].text
    for line in lines[1:]:
        text = _join_lines(text, line.text)
    text = _LEADERS.sub(" … ", text)
    text = _DIVIDED.sub(lambda match: _join_hyphenated(match[1], match[2], words), text)
    is_heading = lines[0].size >= HEADING_SIZE_MIN * usual and len(text) <= HEADING_CHARACTERS_MAX
    return f"## {text}" if is_heading and not text.startswith("#") else text


def _join_lines(text: str, following: str) -> str:
    """Join two lines of a paragraph: with a space, or without one in Japanese and after hyphens."""
    if text[-1] in _HYPHENS:
        return text + following
    if _WIDE.match(text[-1]) and _WIDE.match(following):
        return text + following
    return f"{text} {following}"


def _join_hyphenated(head: str, tail: str, words: set[str]) -> str:
    """Join a divided word as the document writes it elsewhere, by default without the hyphen."""
    joined, hyphenated = head + tail, f"{head}-{tail}"
    is_word = head[-1:].islower() and tail[:1].islower()
    return joined if joined in words or (is_word and hyphenated not in words) else hyphenated
