"""A receiver of webhooks over real HTTP, that verifies signatures and can fail in several ways."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Failure(StrEnum):
    """What the receiver does instead of confirming."""

    HANG = "hang"  # it never responds
    CUT = "cut"  # it closes the connection without a response


@dataclass(frozen=True)
class Delivery:
    """A request: headers in lower case, and the body."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id of the message."""
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        """What the message says."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    def is_signed(self, secret: str = SECRET) -> bool:
        """Whether the signature is right."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        return self.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


class ReceiverFake:
    """Confirms what it receives. `responses`: statuses and failures of the next requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self.responses: deque[int | Failure] = deque()
        self.connections = 0
        self.location: str | None = None  # of redirects
        self.arrived = asyncio.Event()
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        """A URL of the server."""
        return f"http://127.0.0.1:{self.port}/hook?token=t"

    def count_ids(self) -> Counter[tuple[str, int]]:
        """The number of different ids for each window and threshold."""
        ids = {
            (delivery.data["window_start"], delivery.data["threshold"], delivery.id)
            for delivery in self.deliveries
        }
        return Counter((start, threshold) for start, threshold, _ in ids)

    async def wait_count(self, count: int) -> None:
        """Wait until this number of requests has arrived."""
        async with asyncio.timeout(30):
            while len(self.deliveries) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._respond(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in head[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
        self.deliveries.append(Delivery(headers | {":request": head[0]}, body))
        response = self.responses.popleft() if self.responses else 200
        self.arrived.set()
        if response is Failure.CUT:
            return
        if response is Failure.HANG:
            await reader.read()
            return
        location = f"location: {self.location}\r\n" if self.location else ""
        writer.write(f"HTTP/1.1 {response} X\r\n{location}content-length: 0\r\n\r\n".encode())
        await writer.drain()
