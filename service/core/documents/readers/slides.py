"""Reads PPTX with the standard library: a page per slide, with its notes."""

import posixpath
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from service.core.documents.readers.archive import Archive
from service.core.documents.readers.docx import read_core_properties
from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_text,
    clean_title,
    format_rows,
    parse_date,
)
from service.core.errors import FileUnreadable
from service.core.text.pages import PAGE_BREAK

_PRESENTATION = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_REFERENCE = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_TITLES = {"title", "ctrTitle"}
_REMOVED = {"dt", "ftr", "hdr", "sldNum", "sldImg"}  # placeholders: date, footer, number, image


def read_pptx(data: bytes, bytes_max: int) -> Extracted:
    """Read a presentation. Raises `FileUnreadable`, `TooLarge`."""
    archive = Archive(data)
    builder = TextBuilder(bytes_max)
    slides = []
    for path in _list_slides(archive):
        slides.append(clean_text("".join(_read_slide(archive, path))))
        builder.add(slides[-1])
    builder.build()
    title, date = read_core_properties(archive)
    return Extracted(
        text=f"\n{PAGE_BREAK}\n".join(slides),
        format=Format.PPTX,
        title=clean_title(title),
        date=parse_date(date),
        has_pages=True,
    )


def _list_slides(archive: Archive) -> list[str]:
    """The paths of the slides in order."""
    path = "ppt/presentation.xml"
    targets = _read_relationships(archive, path)
    slides = archive.parse_xml(path).iter(f"{_PRESENTATION}sldId")
    paths = [targets[slide.get(_REFERENCE, "")][1] for slide in slides]
    if not paths:
        raise FileUnreadable("the presentation has no slides")
    return paths


def _read_relationships(archive: Archive, path: str) -> dict[str, tuple[str, str]]:
    """The type and the path of each relationship of a part, by id."""
    folder, name = posixpath.split(path)
    relationships = f"{folder}/_rels/{name}.rels"
    if relationships not in archive.names:
        return {}
    return {
        element.get("Id", ""): (
            element.get("Type", "").rpartition("/")[2],
            posixpath.normpath(posixpath.join(folder, element.get("Target", ""))).lstrip("/"),
        )
        for element in archive.parse_xml(relationships)
    }


def _read_slide(archive: Archive, path: str) -> Iterator[str]:
    yield from _read_shapes(archive.parse_xml(path))
    for kind, target in _read_relationships(archive, path).values():
        if kind == "notesSlide":
            notes = "".join(_read_shapes(archive.parse_xml(target)))
            yield f"Notes: {notes}" if notes.strip() else ""


def _read_shapes(slide: ET.Element) -> Iterator[str]:
    """Yield titles as headings, other paragraphs as list items, and tables as rows."""
    for element in slide.iter():
        if element.tag == f"{_PRESENTATION}sp":
            placeholder = element.find(f".//{_PRESENTATION}ph")
            kind = "" if placeholder is None else placeholder.get("type", "body")
            if kind not in _REMOVED:
                yield from _format_shape(_read_paragraphs(element), kind)
        elif element.tag == f"{_DRAWING}tbl":
            yield from format_rows(
                [" ".join(_read_paragraphs(cell)) for cell in row.iter(f"{_DRAWING}tc")]
                for row in element.iter(f"{_DRAWING}tr")
            )
            yield "\n"


def _format_shape(paragraphs: list[str], kind: str) -> Iterator[str]:
    if kind in _TITLES:
        yield f"## {' '.join(paragraphs)}\n\n" if paragraphs else ""
    elif len(paragraphs) > 1:
        yield from (f"- {paragraph}\n" for paragraph in paragraphs)
        yield "\n"
    else:
        yield from (f"{paragraph}\n\n" for paragraph in paragraphs)


def _read_paragraphs(shape: ET.Element) -> list[str]:
    """The paragraphs of a shape that contain text, on one line each."""
    paragraphs = []
    for paragraph in shape.iter(f"{_DRAWING}p"):
        parts = [
            " " if element.tag == f"{_DRAWING}br" else element.text or ""
            for element in paragraph.iter()
            if element.tag in {f"{_DRAWING}t", f"{_DRAWING}br"}
        ]
        paragraphs.append(" ".join("".join(parts).split()))
    return list(filter(None, paragraphs))
