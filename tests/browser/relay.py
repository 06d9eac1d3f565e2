"""A network between browser and service that can be cut."""

import asyncio
import re
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Forwards bytes both ways; `cut` ends every open connection, `away` refuses new ones."""

    def __init__(self, url: str) -> None:
        self.lead_to(url)
        self.away = False
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The URL of the relay."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def lead_to(self, url: str) -> None:
        """Set the target of new connections."""
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port

    def cut(self) -> None:
        """Abort every open connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        ends = {writer, far_writer}
        self._writers |= ends
        await self._pass_both_ways(reader, writer, far_reader, far_writer)
        self._writers -= ends

    async def _pass_both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))


class CuttingRelay(Relay):
    """Cuts the first response to each URL with `cut-K` after K bytes.

    One request per connection.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.cuts: dict[str, int] = {}  # URL → position of the cut, in bytes
        self.cut_off = 0  # number of cuts so far

    async def _pass_both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            url = head.split(b" ", 2)[1].decode()
            far_writer.write(
                re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n"
            )
            match = re.search(r"\bcut-(\d+)", url)
            at = int(match[1]) if match and url not in self.cuts else None
            if at is not None:
                self.cuts[url] = at
                writer.write(await far_reader.readexactly(at))
                await writer.drain()
                self.cut_off += 1
            else:
                await _pass_on(far_reader, writer)
        await _close(writer)
        await _close(far_writer)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()
