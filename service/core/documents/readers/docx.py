"""Reads DOCX with mammoth, which converts it to HTML, including notes and text boxes."""

import io
from xml.etree import ElementTree as ET

import mammoth

from service.core.documents.readers.archive import Archive
from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_title,
    parse_date,
)
from service.core.documents.readers.html import convert_html

_STYLES = """
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => p:fresh
"""


def read_docx(data: bytes, bytes_max: int) -> Extracted:
    """Read a Word document. Raises `FileUnreadable`, `TooLarge`."""
    archive = Archive(data)
    archive.check_parts()
    result = mammoth.convert_to_html(
        io.BytesIO(data), style_map=_STYLES, convert_image=lambda _image: []
    )
    builder = TextBuilder(bytes_max)
    builder.add(convert_html(result.value))
    title, date = read_core_properties(archive)
    return Extracted(
        text=builder.build(), format=Format.DOCX, title=clean_title(title), date=parse_date(date)
    )


def read_core_properties(archive: Archive) -> tuple[str, str]:
    """The title of an office document and the time of its last change; empty if unknown."""
    if "docProps/core.xml" not in archive.names:
        return "", ""
    root = archive.parse_xml("docProps/core.xml")
    return _find_text(root, "title"), _find_text(root, "modified") or _find_text(root, "created")


def _find_text(root: ET.Element, name: str) -> str:
    return next((child.text or "" for child in root if child.tag.endswith(f"}}{name}")), "")
