"""A client that sends raw bytes."""

import asyncio
import json
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.conftest import Service

SECONDS = 20


class Reply(NamedTuple):
    """A response: its status, headers in lower case, and body, decoded from chunks."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, service: Service) -> "RawClient":
        """Connect to a service."""
        url = urlsplit(service.url)
        return cls(*await asyncio.open_connection(url.hostname, url.port))

    async def send(self, data: bytes) -> None:
        """Send, unless the service has closed the connection."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def receive(self) -> Reply:
        """Read the next response."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").rstrip().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            return Reply(int(status.split()[1]), headers, await self._receive_body(headers))

    async def receive_all(self) -> list[Reply]:
        """Read all responses until the service closes the connection."""
        replies = []
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                replies.append(await self.receive())
        return replies

    async def closed(self) -> bool:
        """Wait until the service closes the connection; return whether it sent nothing before."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def _receive_body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return b"" if headers.get("connection") != "close" else await self.reader.read()
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body


async def talk(service: Service, *pieces: bytes) -> list[Reply]:
    """Send pieces as separate segments on a new connection; return all responses until its end."""
    client = await RawClient.connect(service)
    for piece in pieces:
        await client.send(piece)
        await asyncio.sleep(0)
    replies = await client.receive_all()
    await client.close()
    return replies
