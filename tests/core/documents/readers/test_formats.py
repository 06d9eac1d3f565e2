"""The format of a file follows from its content."""

import pytest

from service.core.documents.readers.extracted import Format
from service.core.documents.readers.formats import detect_container, detect_format
from service.core.errors import FileUnreadable, NotText
from tests.fakes.files import build_docx, build_epub, build_pdf, build_pptx, build_xlsx, build_zip

MAIL = b"From: a@example.org\r\nDate: Sun, 29 Nov 2026 01:00:00 +0000\r\n\r\nText."
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100)


@pytest.mark.parametrize(
    ("head", "name", "file_format"),
    [
        (build_pdf(["x"]), "x.txt", Format.PDF),
        (b"junk\n" + build_pdf(["x"]), "", Format.PDF),
        (b"<!DOCTYPE HTML><p>", "x.txt", Format.HTML),
        (b"\xef\xbb\xbf \n<?xml version='1.0'?><!-- c --><html>", "x.md", Format.HTML),
        ("<html>".encode("utf-16"), "x", Format.HTML),
        (b"<p>fragment", "x.HTM", Format.HTML),
        (b"<p>fragment", "x.md", Format.TEXT),
        (MAIL, "x", Format.EMAIL),
        (b"Subject: x\n\ny", "x.eml", Format.EMAIL),
        (b"From: the beginning\n\nDate: x", "x.txt", Format.TEXT),
        (b"a,b\n1,2", "x.CSV", Format.CSV),
        (b"a,b\n1,2", "x.txt", Format.TEXT),
        (b"a\tb", "x.tsv", Format.CSV),
        (b"{}", "x.json", Format.JSON),
        (b"\x89PNG\0", "x.csv", Format.TEXT),
        (b"# Title", "x.pdf", Format.TEXT),
        (b"PK\x03\x04", "x.txt", None),
        (OLE, "x.txt", None),
        (b"", "", Format.TEXT),
    ],
)
def test_content_decides_before_the_name(
    head: bytes, name: str, file_format: Format | None
) -> None:
    """The name decides between formats that look like plain text."""
    assert detect_format(head, name) is file_format


@pytest.mark.parametrize(
    ("data", "file_format"),
    [
        (build_docx(""), Format.DOCX),
        (build_xlsx({"S": []}), Format.SPREADSHEET),
        (build_pptx([["x"]]), Format.PPTX),
        (build_epub(["x"]), Format.EPUB),
        (OLE + "Workbook".encode("utf-16-le"), Format.SPREADSHEET),
    ],
)
def test_containers_are_recognized_by_their_entries(data: bytes, file_format: Format) -> None:
    """Office documents and books are zip archives."""
    assert detect_container(data) is file_format


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (build_zip({"a.txt": "x"}), "zip archive"),
        (build_zip({"mimetype": "application/vnd.oasis.opendocument.text"}), "OpenDocument"),
        (OLE, "old office document"),
    ],
)
def test_other_containers_are_not_supported(data: bytes, message: str) -> None:
    """The message names the format, and what to save it as."""
    with pytest.raises(NotText, match=message):
        detect_container(data)


def test_encrypted_office_documents_are_recognized() -> None:
    """They are stored in an old container."""
    with pytest.raises(FileUnreadable, match="encrypted"):
        detect_container(OLE + "EncryptedPackage".encode("utf-16-le"))
