"""Uploads of `kotae add`: batches, and pages of the web."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.cli.client import fetch_url
from service.cli.uploading import (
    BATCH_BYTES,
    BATCH_FILES,
    UploadItem,
    find_files,
    group_batches,
    read_arguments,
)
from service.core.errors import KotaeError, NotFound
from tests.command import command
from tests.conftest import Serve


@asynccontextmanager
async def serve_page(response: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server with one response; yields its URL and the heads of requests."""
    heads: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


def respond_with(body: bytes, head: bytes = b"200 OK\r\nContent-Type: text/html") -> bytes:
    """A response that ends with its connection."""
    return b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n" + body


async def test_a_page_is_fetched_by_the_command(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the credential of the service; its URL is the source."""
    service = await serve()
    monkeypatch.setenv("KOTAE_API_KEY", "kt_secret")
    async with serve_page(respond_with(b"<title>Guide</title><p>Text.")) as (url, heads):
        await command("add", f"{url}/guide", "--url", service.url)
    (item,) = (await service.client.get("/ai/documents")).json()["items"]

    assert (item["title"], item["format"], item["source"]) == ("Guide", "html", f"{url}/guide")
    assert b"kt_secret" not in heads[0]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (respond_with(b"x" * 101), "larger than 100 bytes"),
        (respond_with(b"", b"404 Not Found"), "404"),
    ],
)
async def test_pages_have_limits(response: bytes, message: str) -> None:
    """An error page is no document."""
    async with serve_page(response) as (url, _):
        with pytest.raises(KotaeError, match=message):
            await asyncio.to_thread(fetch_url, url, bytes_max=100)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([1] * (BATCH_FILES + 1), [BATCH_FILES, 1]),
        ([BATCH_BYTES, 1, BATCH_BYTES + 1, 1], [1, 1, 1, 1]),
        ([BATCH_BYTES - 1, 1, 1], [2, 1]),
    ],
)
def test_batches_are_bounded(tmp_path: Path, sizes: Sequence[int], batches: list[int]) -> None:
    """In files and bytes; a larger file is sent alone."""
    items = []
    for n, size in enumerate(sizes):
        path = tmp_path / f"{n:03}"
        with path.open("wb") as file:
            file.truncate(size)
        items.append(UploadItem.from_path(path))

    assert [len(batch) for batch in group_batches(items)] == batches
    assert [item for batch in group_batches(items) for item in batch] == items


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    """A directory is walked once."""
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)

    assert [item.path for item in find_files(tmp_path)] == [tmp_path / "a.md"]


def test_a_missing_file_is_an_error() -> None:
    """Before anything is uploaded."""
    with pytest.raises(NotFound, match="no such file"):
        list(read_arguments(["/nowhere"]))
