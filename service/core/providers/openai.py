"""A provider behind the OpenAI protocol: any that speaks it, the embedded ones included.

The client is `AsyncOpenAI` (`sdk`): it knows where the provider is, how a request is authenticated and which headers it
carries. It is asked once, since asking it each time was the largest part of what an answer cost (docs/explanation/performance.md):
the head that it writes is the same for every request, and goes before every body, over `connections`. What needs more
than a plain connection (a proxy, the embedded model) goes through the client whole. Bodies are read as raw bytes, bounded, and
parsed once by `wire`.
"""

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread
import httpx2
import msgspec

from service.core.encoding import to_json
from service.core.errors import ProviderCut, ProviderError, ProviderInvalid
from service.core.lazy import LazyModule, load_module
from service.core.ports import Delta, ProviderRequest
from service.core.providers.chat_stream import (
    ERROR_BYTES_MAX,
    StreamDecoder,
    decode_completion,
    error_from_refusal,
)
from service.core.providers.http1 import ConnectionPool, HttpConnection

if TYPE_CHECKING:
    from service.core.providers import sdk
else:
    sdk = LazyModule("service.core.providers.sdk")

OPENAI_URL = "https://api.openai.com/v1"
EMBEDDINGS_BYTES_MAX = 33_554_432
CONNECT_SECONDS = 5.0


class Exchange(Protocol):
    """An answer of the provider, its status a good one, its body still to be read."""

    def encoding(self) -> bytes:
        """How the body is compressed."""
        ...

    async def read(self) -> bytes:
        """What has come since the last call; empty at the end."""
        ...

    async def close(self, *, tail: bool = False) -> None:
        """Done with it. `tail`: its end is near, and then its connection can be used again."""
        ...


class OpenAIProvider:
    """A provider behind the OpenAI protocol. `transport` replaces the network by something in this process."""

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str | None,
        idle_seconds: float,
        answer_bytes_max: int,
        connect_seconds: float = CONNECT_SECONDS,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        url = httpx2.URL(base_url or OPENAI_URL)
        # Reading the certificates of all authorities takes a while; an address without TLS is never asked for one.
        tls = (
            httpx2.create_ssl_context()
            if url.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )

        def create_sdk() -> "sdk.SdkClient":
            return sdk.SdkClient(
                url=url,
                api_key=api_key,
                tls=tls,
                transport=transport,
                connect_seconds=connect_seconds,
                idle_seconds=idle_seconds,
            )

        self._create_sdk = create_sdk
        self._sdk: sdk.SdkClient | None = None
        self._loading = asyncio.Lock()
        self._connections = None
        if transport is None and not url.userinfo and not _proxied(url):
            port, tls_needed = (
                url.port or (443 if url.scheme == "https" else 80),
                tls if url.scheme == "https" else None,
            )
            self._connections = ConnectionPool(
                url.host,
                port,
                tls_needed,
                connect_seconds=connect_seconds,
                idle_seconds=idle_seconds,
            )
        self._head = b""
        # OpenAI's newer models refuse the old name, most compatible servers do not know the new one.
        self._max_tokens_field = (
            "max_completion_tokens" if url.host == "api.openai.com" else "max_tokens"
        )
        # Every byte of text takes at most six as a JSON escape; the rest is the envelope.
        self._body_bytes_max = answer_bytes_max * 6 + 65_536
        self._answer_bytes_max = answer_bytes_max

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[list[Delta], None]:
        """See `Provider.stream`."""
        exchange = await self._post(self._body(request))
        tail = False
        try:
            if exchange.encoding() not in {b"", b"identity"}:
                raise ProviderInvalid(
                    "the provider sent a compressed body, though none was accepted"
                )
            if request.stream:
                async for deltas in self._streamed(exchange):
                    yield deltas
            else:
                yield [await self._whole(exchange)]
            tail = True
        finally:
            await exchange.close(tail=tail)

    async def embeddings(self, body: bytes) -> bytes:
        """The answer to a request for vectors, in one piece. Raises `ProviderError`s."""
        exchange: Exchange = await (await self._client()).post(body, "/embeddings")
        try:
            if exchange.encoding() not in {b"", b"identity"}:
                raise ProviderInvalid(
                    "the provider sent a compressed body, though none was accepted"
                )
            reply = bytearray()
            while data := await exchange.read():
                reply += data
                if len(reply) > EMBEDDINGS_BYTES_MAX:
                    raise ProviderInvalid(
                        f"the vectors are longer than {EMBEDDINGS_BYTES_MAX} bytes"
                    )
            return bytes(reply)
        finally:
            await exchange.close()

    async def models(self) -> list[str]:
        """The models that the provider offers. Raises `ProviderError`s."""
        return await (await self._client()).models()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        if self._connections:
            await self._connections.aclose()
        if self._sdk:
            await self._sdk.aclose()

    async def _client(self) -> "sdk.SdkClient":
        """The SDK's client, loaded when it is first needed, in a thread: it takes a while."""
        if self._sdk is None:
            async with self._loading:  # one thread, however many wait for it
                if self._sdk is None:
                    await anyio.to_thread.run_sync(load)
                    self._sdk = self._create_sdk()
        return self._sdk

    def _body(self, request: ProviderRequest) -> bytes:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            self._max_tokens_field: request.max_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return to_json(body)

    async def _post(self, body: bytes) -> Exchange:
        if self._connections is None:
            return await (await self._client()).post(body)
        self._head = self._head or await (await self._client()).head()
        connection = await self._connections.send_request(
            b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(body), body)
        )
        try:
            await connection.wait_head()
            refused = None if 200 <= connection.status < 300 else await _refused(connection)
        except BaseException:
            await connection.close()
            raise
        if refused:
            await connection.close()
            raise refused
        return connection

    async def _streamed(self, exchange: Exchange) -> AsyncGenerator[list[Delta], None]:
        decoder, finished, size = StreamDecoder(), False, 0
        while not decoder.done:
            data = await exchange.read()
            deltas = decoder.feed(data) if data else decoder.end()
            for delta in deltas:
                size += len(delta.text) if delta.text.isascii() else len(delta.text.encode())
                finished = finished or bool(delta.finish_reason)
            if size > self._answer_bytes_max:
                raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
            if deltas:
                yield deltas
            if decoder.error:
                raise decoder.error
            if not data:
                break
        if not finished:
            raise ProviderCut("the provider ended the answer without saying that it was finished")

    async def _whole(self, exchange: Exchange) -> Delta:
        body = bytearray()
        while data := await exchange.read():
            body += data
            if len(body) > self._body_bytes_max:
                raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
        delta = decode_completion(bytes(body))
        if not delta.finish_reason:
            raise ProviderCut("the provider ended the answer without saying that it was finished")
        return delta


def _proxied(url: httpx2.URL) -> bool:
    """Whether the environment names a proxy for this address."""
    proxies = urllib.request.getproxies()
    return bool(
        (proxies.get(url.scheme) or proxies.get("all"))
        and not urllib.request.proxy_bypass(url.host)
    )


async def _refused(connection: HttpConnection) -> ProviderError:
    """What an error status says, with the beginning of its body."""
    body = bytearray()
    with suppress(ProviderError):
        while len(body) < ERROR_BYTES_MAX and (data := await connection.read()):
            body += data
    try:
        said = msgspec.json.decode(body[:ERROR_BYTES_MAX])
    except (msgspec.DecodeError, RecursionError):
        said = None
    if isinstance(said, dict):
        said = said.get("error", said)
    return error_from_refusal(
        connection.status, connection.headers.get(b"retry-after", b"").decode("latin-1"), said
    )


def load() -> None:
    """Import the SDK, ahead of the first request. Takes half a second."""
    load_module(sdk)
