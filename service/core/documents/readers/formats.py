"""Recognizes the format of a file by its content.

The name decides only between formats that are text as well: CSV, JSON and fragments of HTML look
like plain text.
"""

import re

from service.core.documents.readers.archive import Archive
from service.core.documents.readers.extracted import Format
from service.core.errors import FileUnreadable, NotText

HEAD_BYTES = 4096  # the beginning of a file, from which its format is recognized

_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # old office documents, and encrypted ones
_HTML = re.compile(
    r"\s*(?:<\?xml[^>]{0,200}\?>\s*|<!--.{0,1000}?-->\s*){0,4}<(?:!doctype html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,60}:[ \t]*\S")
_FROM = re.compile(r"^From:", re.MULTILINE | re.IGNORECASE)
_MAIL_HEADER = re.compile(
    r"^(?:Date|Received|Message-ID|MIME-Version):", re.MULTILINE | re.IGNORECASE
)
_SUFFIXES = {
    "csv": Format.CSV, "tsv": Format.CSV, "tab": Format.CSV,
    "json": Format.JSON, "ndjson": Format.JSON, "jsonl": Format.JSON,
    "html": Format.HTML, "htm": Format.HTML, "xhtml": Format.HTML,
}  # fmt: skip
_OFFICE_TYPES = (
    (re.compile(rb"(?:wordprocessingml|ms-word)\.[\w.]+\.main"), Format.DOCX),
    (re.compile(rb"(?:spreadsheetml|ms-excel)\.[\w.]+\.main"), Format.SPREADSHEET),
    (re.compile(rb"(?:presentationml|ms-powerpoint)\.[\w.]+\.main"), Format.PPTX),
)
_MIME_TYPES = {
    b"application/epub+zip": Format.EPUB,
    b"application/vnd.oasis.opendocument.spreadsheet": Format.SPREADSHEET,
}


def detect_format(head: bytes, name: str) -> Format | None:
    """The format of a file that begins with `head`; None for an archive or an old office file."""
    if head.startswith((_ZIP, _OLE)):
        return None
    if b"%PDF-" in head[:1024]:
        return Format.PDF
    text = _decode_head(head)
    suffix = name.rpartition(".")[2].lower()
    if _HTML.match(text):
        return Format.HTML
    if _is_mail(text, suffix):
        return Format.EMAIL
    return _SUFFIXES.get(suffix, Format.TEXT) if "\0" not in text else Format.TEXT


def detect_container(data: bytes) -> Format:
    """The format of a zip archive or an OLE file. Raises `NotText`, `FileUnreadable`."""
    if data.startswith(_OLE):
        return _detect_ole(data)
    archive = Archive(data)
    if "[Content_Types].xml" in archive.names:
        types = archive.read("[Content_Types].xml")
        for pattern, file_format in _OFFICE_TYPES:
            if pattern.search(types):
                return file_format
    mime_type = archive.read("mimetype").strip() if "mimetype" in archive.names else b""
    if mime_type in _MIME_TYPES:
        return _MIME_TYPES[mime_type]
    if b"opendocument" in mime_type:
        raise NotText("the file is an OpenDocument file; save it as DOCX, PPTX or PDF")
    raise NotText("the file is a zip archive, not a text")


def _detect_ole(data: bytes) -> Format:
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise FileUnreadable("the office document is encrypted; save it without a password")
    if any(name.encode("utf-16-le") in data for name in ("Workbook", "Book")):
        return Format.SPREADSHEET
    raise NotText("the file is an old office document; save it as DOCX, PPTX, XLSX or PDF")


def _decode_head(head: bytes) -> str:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return head.decode(encoding, "replace")


def _is_mail(text: str, suffix: str) -> bool:
    if not _HEADER.match(text):
        return False
    headers = text.replace("\r\n", "\n").partition("\n\n")[0]
    is_complete = bool(_FROM.search(headers) and _MAIL_HEADER.search(headers))
    return suffix == "eml" or is_complete
