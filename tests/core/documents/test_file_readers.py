"""Where files are read: a thread, or an isolated child process per upload."""

import asyncio
import io
import sys
from pathlib import Path

import anyio
import pytest

from service.core.documents.file_readers import FILE_BYTES_PER_TEXT_BYTE, FileReader, FileReaders
from service.core.documents.readers.extracted import Format
from service.core.errors import FileUnreadable, NotText, TooLarge
from tests.fakes.files import build_pdf

HTML = b"<!doctype html><title>T</title><p>Text."


def child_program(response: str) -> tuple[str, ...]:
    """The command of a child that answers each file with frames: a Python expression."""
    program = f"""
import os, time
import msgspec
from multiprocessing.connection import Connection
connection, pack = Connection(0), msgspec.msgpack.encode
def result(text):
    head = {{"type": "ReadResult", "format": "html", "title": "", "date": None,
            "encoding": "x", "has_pages": False}}
    return [pack(head), str(text).encode()]
while True:
    connection.recv_bytes()
    while connection.recv_bytes():
        pass
    for frame in {response}:
        connection.send_bytes(frame)
    connection.send_bytes(b"")
"""
    return sys.executable, "-c", program


async def read(reader: FileReader, data: bytes = HTML, name: str = "file") -> str:
    """The text of a file."""
    return (await reader.read_file(io.BytesIO(data), name)).text


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended and was reaped."""
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.001)


async def test_plain_text_needs_no_child() -> None:
    """It is decoded in a thread."""
    async with FileReaders(("false",)).open_reader("u", 1000) as reader:
        extracted = await reader.read_file(io.BytesIO("灯台".encode("cp932")), "a.md")

    assert (extracted.text, extracted.encoding, extracted.format) == ("灯台", "cp932", Format.TEXT)


async def test_other_formats_are_read_by_the_child() -> None:
    """Several files by the same one."""
    async with FileReaders().open_reader("u", 1000) as reader:
        page = await reader.read_file(io.BytesIO(HTML), "a")
        pdf = await reader.read_file(io.BytesIO(build_pdf(["One.", "Two."], title="P")), "b")

    assert (page.text, page.title, page.format) == ("Text.", "T", Format.HTML)
    assert (pdf.text, pdf.title, pdf.has_pages) == ("One.\n\f\nTwo.", "P", True)


@pytest.mark.parametrize(
    ("data", "size"),
    [(b"text " * 3, 10), (HTML.ljust(101), 10 * FILE_BYTES_PER_TEXT_BYTE)],
    ids=["text", "html"],
)
async def test_the_size_of_a_file_is_limited(data: bytes, size: int) -> None:
    """Other formats than plain text contain more than text, so they may be larger."""
    async with FileReaders(("false",)).open_reader("u", 10) as reader:
        with pytest.raises(TooLarge, match=f"the file is larger than {size} bytes"):
            await read(reader, data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"%PDF-1.4", FileUnreadable, "the PDF is damaged"),
        (b"PK\x03\x04", FileUnreadable, "damaged"),
        (b"<html>" + b"\0" * 99, NotText, "binary"),
        (HTML + b"x" * 200, TooLarge, "the text of the file"),
    ],
)
async def test_problems_are_reported_by_the_child(
    data: bytes, error: type[Exception], message: str
) -> None:
    """As the errors that the readers raise."""
    async with FileReaders().open_reader("u", 100) as reader:
        with pytest.raises(error, match=message):
            await read(reader, data)


@pytest.mark.parametrize(
    "command",
    [
        ("false",),
        ("/nowhere/at/all",),
        child_program("[]"),
        child_program("[b'junk']"),
        child_program("[pack({'type': 'ReadFailure', 'code': 'x'})]"),
        child_program("result('x') + [bytes(100_000)] * 100"),
        child_program("[result('')[0], b'\\xff']"),
    ],
    ids=["exits", "does not start", "nothing", "junk", "incomplete", "too much", "not UTF-8"],
)
async def test_a_child_that_fails_rejects_the_file(command: tuple[str, ...]) -> None:
    """And nothing else: the next file gets a new child."""
    async with FileReaders(command).open_reader("u", 1000) as reader:
        for _ in range(2):
            with pytest.raises(FileUnreadable, match="the reader of this format failed"):
                await read(reader)


async def test_a_file_that_takes_too_long_is_rejected() -> None:
    """Its child is killed."""
    readers = FileReaders(child_program("time.sleep(600)"), file_seconds_max=0.01)
    async with readers.open_reader("u", 1000) as reader:
        with pytest.raises(FileUnreadable, match=r"more than 0\.01 seconds"):
            await read(reader)


@pytest.mark.skipif(sys.platform != "linux", reason="not run: only Linux limits the memory")
async def test_the_memory_of_a_child_is_limited() -> None:
    """A file that needs more is rejected."""
    readers = FileReaders(child_program("result(len(bytearray(2**29)))"), memory_bytes_max=2**29)
    async with readers.open_reader("u", 1000) as reader:
        with pytest.raises(FileUnreadable, match="needs too much memory"):
            await read(reader)


async def test_a_child_belongs_to_one_upload() -> None:
    """A file that takes over its child cannot change the documents of others."""
    readers = FileReaders(child_program("result(os.getpid())"))
    async with readers.open_reader("u", 1000) as reader:
        first, second = await read(reader), await read(reader)
    async with readers.open_reader("u", 1000) as reader:
        third = await read(reader)

    assert first == second != third
    await wait_gone(int(first))


async def test_an_upload_that_is_cancelled_leaves_no_child() -> None:
    """And its turn is free again."""
    readers = FileReaders(child_program("result(os.getpid())"), children_max=1)
    with anyio.CancelScope() as scope:
        async with readers.open_reader("u", 1000) as reader:
            pid = int(await read(reader))
            scope.cancel()
            await read(reader)
    await wait_gone(pid)
    async with asyncio.timeout(20), readers.open_reader("v", 1000) as reader:
        await read(reader)


async def test_an_upload_gives_its_turn_to_others() -> None:
    """After a few seconds, between two files."""
    readers = FileReaders(child_program("result(os.getpid())"), children_max=1, turn_seconds=0)
    async with (
        asyncio.timeout(20),
        readers.open_reader("u", 1000) as mine,
        readers.open_reader("v", 1000) as theirs,
    ):
        pids = [await read(mine), await read(theirs), await read(mine)]

    assert len(set(pids)) == 3


async def test_a_user_has_one_child_at_a_time() -> None:
    """So that the uploads of one user do not keep others waiting."""
    readers = FileReaders(child_program("result(os.getpid())"), children_max=2)
    async with asyncio.timeout(20), readers.open_reader("u", 1000) as first:
        await read(first)
        async with readers.open_reader("u", 1000) as second:
            waiting = asyncio.create_task(read(second))
            async with readers.open_reader("v", 1000) as other:
                await read(other)
            assert not waiting.done()
            first.end_turn()
            await waiting

    assert readers._users == {}
