"""The child process that reads files: `python -m service.core.documents.readers.child`.

It is started by `file_readers.py`. A request is a `ReadTask` in MessagePack, then the bytes of the
file in any number of frames. The response is a `ReadResult` or a `ReadFailure` in MessagePack, then
the text as UTF-8 in frames. An empty frame ends both.
"""

import datetime as dt
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import msgspec

from service.core.documents.readers.extracted import Extracted, Format
from service.core.documents.readers.formats import HEAD_BYTES, detect_container, detect_format
from service.core.errors import FileUnreadable, KotaeError
from service.core.lazy import LazyModule
from service.core.text.decoding import split_parts

if TYPE_CHECKING:
    from service.core.documents.readers import (
        delimited,
        docx,
        epub,
        html,
        json_values,
        mail,
        pdf,
        slides,
        spreadsheet,
    )
else:
    delimited = LazyModule("service.core.documents.readers.delimited")
    docx = LazyModule("service.core.documents.readers.docx")
    epub = LazyModule("service.core.documents.readers.epub")
    html = LazyModule("service.core.documents.readers.html")
    json_values = LazyModule("service.core.documents.readers.json_values")
    mail = LazyModule("service.core.documents.readers.mail")
    pdf = LazyModule("service.core.documents.readers.pdf")
    slides = LazyModule("service.core.documents.readers.slides")
    spreadsheet = LazyModule("service.core.documents.readers.spreadsheet")

READERS: dict[Format, Callable[[], Callable[[bytes, int], Extracted]]] = {
    Format.CSV: lambda: delimited.read_delimited,
    Format.DOCX: lambda: docx.read_docx,
    Format.EMAIL: lambda: mail.read_mail,
    Format.EPUB: lambda: epub.read_epub,
    Format.HTML: lambda: html.read_html,
    Format.JSON: lambda: json_values.read_json,
    Format.PDF: lambda: pdf.read_pdf,
    Format.PPTX: lambda: slides.read_pptx,
    Format.SPREADSHEET: lambda: spreadsheet.read_spreadsheet,
}


class ReadTask(msgspec.Struct, frozen=True):
    """A request: the name of the file, and the maximum size of its text in bytes."""

    name: str
    text_bytes_max: int


class ReadResult(msgspec.Struct, frozen=True, tag=True):
    """What was read, without the text."""

    format: Format
    title: str
    date: dt.date | None
    encoding: str
    has_pages: bool


class ReadFailure(msgspec.Struct, frozen=True, tag=True):
    """Why the file cannot be read: the code and the detail of a problem."""

    code: str
    detail: str


def read_file(data: bytes, name: str, text_bytes_max: int) -> Extracted:
    """Read a file of any format except plain text.

    Raises `NotText`, `FileUnreadable`, `TooLarge`; whatever else a reader raises means that the
    file is damaged.
    """
    file_format = detect_format(data[:HEAD_BYTES], name) or detect_container(data)
    read = READERS[file_format]()
    try:
        return read(data, text_bytes_max)
    except KotaeError:
        raise
    except MemoryError:
        raise FileUnreadable("reading the file needs too much memory") from None
    except Exception as error:
        raise FileUnreadable("the file is damaged or incomplete") from error


def main() -> None:
    """Read files until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which ends the child
    with Connection(sys.stdin.fileno()) as connection, suppress(EOFError, ConnectionError):
        while True:
            _process_task(connection)


def _process_task(connection: Connection) -> None:
    task = msgspec.msgpack.decode(connection.recv_bytes(), type=ReadTask)
    data = b"".join(iter(connection.recv_bytes, b""))
    try:
        extracted = read_file(data, task.name, task.text_bytes_max)
    except KotaeError as error:
        connection.send_bytes(msgspec.msgpack.encode(ReadFailure(error.code, error.detail)))
    else:
        result = ReadResult(
            extracted.format,
            extracted.title,
            extracted.date,
            extracted.encoding,
            extracted.has_pages,
        )
        connection.send_bytes(msgspec.msgpack.encode(result))
        for part in split_parts(extracted.text):
            connection.send_bytes(part.encode("utf-8", "replace"))
    connection.send_bytes(b"")


if __name__ == "__main__":
    main()
