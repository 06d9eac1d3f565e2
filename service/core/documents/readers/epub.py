"""Reads EPUB with the standard library: its chapters in reading order, as HTML."""

import posixpath
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from service.core.documents.readers.archive import Archive
from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_title,
    parse_date,
)
from service.core.documents.readers.html import convert_html, decode_html
from service.core.errors import FileUnreadable

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"


def read_epub(data: bytes, bytes_max: int) -> Extracted:
    """Read a book. Raises `FileUnreadable`, `TooLarge`."""
    archive = Archive(data)
    path = _find_element(archive.parse_xml(_CONTAINER), "rootfile").get("full-path", "")
    package = archive.parse_xml(path)
    encrypted = _list_encrypted(archive)
    builder = TextBuilder(bytes_max)
    for chapter in _list_chapters(package, posixpath.dirname(path)):
        if chapter in encrypted:
            raise FileUnreadable("the book is encrypted (DRM)")
        builder.add(convert_html(decode_html(archive.read(chapter))[0]) + "\n\n")
    return Extracted(
        text=builder.build(),
        format=Format.EPUB,
        title=clean_title(_find_text(package, "title")),
        date=parse_date(_find_text(package, "date")),
    )


def _list_chapters(package: ET.Element, folder: str) -> list[str]:
    """The paths of the chapters in the order of the spine."""
    items = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in package.iter()
        if _name(item) == "item" and "html" in item.get("media-type", "")
    }
    references = (item.get("idref") for item in package.iter() if _name(item) == "itemref")
    return [items[reference] for reference in references if reference in items]


def _list_encrypted(archive: Archive) -> set[str]:
    if _ENCRYPTION not in archive.names:
        return set()
    root = archive.parse_xml(_ENCRYPTION)
    return {
        unquote(element.get("URI", ""))
        for element in root.iter()
        if _name(element) == "CipherReference"
    }


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _find_element(root: ET.Element, name: str) -> ET.Element:
    for element in root.iter():
        if _name(element) == name:
            return element
    raise FileUnreadable(f"the book is damaged: `{name}` is missing")


def _find_text(root: ET.Element, name: str) -> str:
    return next((element.text or "" for element in root.iter() if _name(element) == name), "")
