"""The child that reads files, and what damaged and hostile files do to it."""

import io
import random
from collections.abc import AsyncIterator

import pytest

from service.core.documents.file_readers import FileReader, FileReaders
from service.core.documents.readers.child import READERS, read_file
from service.core.documents.readers.extracted import Format
from service.core.errors import FileUnreadable, KotaeError, NotText, TooLarge
from tests.core.documents.readers.test_mail import build_mail
from tests.fakes.files import (
    build_docx,
    build_epub,
    build_pdf,
    build_pptx,
    build_xlsx,
    build_zip,
    word_paragraph,
)

BYTES_MAX = 1_000_000
FILES = {
    Format.CSV: b"Name,Price\nKettle,45\n",
    Format.DOCX: build_docx(word_paragraph("Heading", "Heading1") + word_paragraph("Text.")),
    Format.EMAIL: build_mail("Text.").as_bytes(),
    Format.EPUB: build_epub(["<h1>One</h1><p>Text."]),
    Format.HTML: b"<!doctype html><title>T</title><table><tr><td>a<td>b</table><p>Text.",
    Format.JSON: b'{"a": {"b": [1, 2]}, "c": [{"d": "text"}]}',
    Format.PDF: build_pdf(["# Heading\nText.", "More text."]),
    Format.PPTX: build_pptx([["Heading", "Text."]]),
    Format.SPREADSHEET: build_xlsx({"S": [["Name", "Price"], ["Kettle", 45.0]]}),
}
VARIANTS = 60  # of each file


def name_of(file_format: Format) -> str:
    """A name that is needed for formats that are text."""
    return f"file.{file_format}"


@pytest.fixture
async def reader() -> AsyncIterator[FileReader]:
    """A reader with the usual limits."""
    async with FileReaders().open_reader("u", BYTES_MAX) as reader:
        yield reader


async def try_reading(reader: FileReader, data: bytes, name: str) -> type[KotaeError] | None:
    """Read a file; returns the class of the problem."""
    try:
        await reader.read_file(io.BytesIO(data), name)
    except KotaeError as error:
        return type(error)
    return None


@pytest.mark.parametrize("file_format", READERS)
def test_every_format_is_read(file_format: Format) -> None:
    """By its content, except for formats that are text."""
    assert read_file(FILES[file_format], name_of(file_format), BYTES_MAX).format is file_format


@pytest.mark.slow
@pytest.mark.parametrize("file_format", READERS)
async def test_truncated_and_altered_files_are_a_clean_problem(
    reader: FileReader, file_format: Format
) -> None:
    """Or are read; nothing else is raised, and the child survives or is replaced."""
    generator, data, name = random.Random(1), FILES[file_format], name_of(file_format)
    results = []
    for _ in range(VARIANTS):
        results.append(await try_reading(reader, data[: generator.randrange(len(data))], name))
        altered = bytearray(data)
        for _ in range(generator.choice([1, 3, 20])):
            altered[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        results.append(await try_reading(reader, bytes(altered), name))

    assert set(results) <= {None, NotText, FileUnreadable, TooLarge}
    assert await try_reading(reader, data, name) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        build_zip({"word/document.xml": "x" * 40_000_000, "[Content_Types].xml": ""}),
        b"<html>" + b"<div>" * 150_000,
        b"%PDF-1.4\n" + b"1 0 obj\n<< /Kids [1 0 R] >>\n" * 10_000,
        b"From: a\nDate: b\nContent-Type: multipart/mixed; boundary=x\n\n" + b"--x\n" * 100_000,
    ],
    ids=["zip", "html", "pdf", "mail"],
)
async def test_bombs_end_within_the_limits(data: bytes) -> None:
    """Of time and memory; the next file of the same upload is read."""
    readers = FileReaders(file_seconds_max=3, memory_bytes_max=2**29)
    async with readers.open_reader("u", BYTES_MAX) as reader:
        result = await try_reading(reader, data, "bomb")
        assert result in {None, NotText, FileUnreadable, TooLarge}
        assert await try_reading(reader, FILES[Format.HTML], "x") is None
