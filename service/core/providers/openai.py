"""A provider with an OpenAI-compatible API, including the extractive and the local model.

`AsyncOpenAI` (`sdk.py`) determines the URL, the authentication and the headers. It builds the
request head once, because building it per request was the largest part of the cost of an answer
(docs/explanation/performance.md); the head is then sent before every body through `http1.py`.
Requests that need more than a plain connection (a proxy, the extractive model) go through the SDK.
Bodies are read as raw bytes, bounded, and parsed once by `chat_stream.py`.
"""

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread
import httpx2
import msgspec

from service.core.encoding import to_json
from service.core.errors import (
    ProviderCut,
    ProviderError,
    ProviderInvalid,
    ProviderUnreachable,
)
from service.core.http1 import ConnectionPool, HttpConnection
from service.core.lazy import LazyModule, load_module
from service.core.ports import MAX_TOKENS_FIELDS, Delta, ProviderRequest
from service.core.provider_file import ProviderConfig
from service.core.providers.chat_stream import (
    BYTE_ORDER_MARK,
    ERROR_BYTES_MAX,
    WHOLE_READ_BYTES_MAX,
    StreamDecoder,
    decode_completion,
    error_from_refusal,
    split_read,
)
from service.core.redaction import add_secrets

if TYPE_CHECKING:
    from service.core.providers import sdk
else:
    sdk = LazyModule("service.core.providers.sdk")

OPENAI_URL = "https://api.openai.com/v1"
EMBEDDINGS_BYTES_MAX = 33_554_432
CONNECT_SECONDS = 5.0
INLINE_BYTES_MAX = 262_144  # larger bodies are decoded in a thread


class Exchange(Protocol):
    """A successful response of the provider whose body has not been read."""

    def content_encoding(self) -> bytes:
        """The compression of the body; empty without compression."""
        ...

    async def read(self) -> bytes:
        """Return the body received since the last call; empty at the end."""
        ...

    async def close(self, *, tail: bool = False) -> None:
        """End the exchange. With `tail`, the rest of the body is read to reuse the connection."""
        ...


class OpenAIProvider:
    """An OpenAI-compatible provider. `transport` replaces the network.

    `headers`: sent with every request.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str | None,
        idle_seconds: float,
        answer_bytes_max: int,
        connect_seconds: float = CONNECT_SECONDS,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        url = httpx2.URL(base_url or OPENAI_URL)
        add_secrets([api_key, *url.userinfo.decode().split(":", 1)])
        # Loading all CA certificates is slow and unnecessary without TLS.
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
                headers=headers or {},
            )

        self._create_sdk = create_sdk
        self._sdk: sdk.SdkClient | None = None
        self._load_lock = asyncio.Lock()
        self._connections = None
        if transport is None and not url.userinfo and not _needs_proxy(url):
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
        # New OpenAI models reject the old name; most compatible servers do not know the new one.
        self._max_tokens_field = (
            "max_completion_tokens" if url.host == "api.openai.com" else "max_tokens"
        )
        # A byte of text takes at most six bytes as a JSON escape; the rest is the envelope.
        self._body_bytes_max = answer_bytes_max * 6 + 65_536
        self._answer_bytes_max = answer_bytes_max

    async def stream(
        self, request: ProviderRequest, on_sent: Callable[[], None]
    ) -> AsyncGenerator[list[Delta], None]:
        """See `Provider.stream`."""
        exchange = await self._send_request(
            self._build_body(request), on_sent, request.trace_headers
        )
        tail = False
        try:
            if exchange.content_encoding() not in {b"", b"identity"}:
                raise ProviderInvalid(
                    "the provider sent a compressed body, though none was accepted"
                )
            if request.stream:
                async for deltas in self._stream_deltas(exchange, request):
                    yield deltas
            else:
                yield [await self._read_completion(exchange, request)]
            tail = True
        finally:
            await exchange.close(tail=tail)

    async def fetch_embeddings(self, body: bytes) -> bytes:
        """See `Provider.fetch_embeddings`."""
        exchange: Exchange = await (await self._load_client()).send_post(body, "/embeddings")
        try:
            if exchange.content_encoding() not in {b"", b"identity"}:
                raise ProviderInvalid(
                    "the provider sent a compressed body, though none was accepted"
                )
            body_received = bytearray()
            while data := await exchange.read():
                body_received += data
                if len(body_received) > EMBEDDINGS_BYTES_MAX:
                    raise ProviderInvalid(
                        f"the vectors are longer than {EMBEDDINGS_BYTES_MAX} bytes"
                    )
            return bytes(body_received)
        finally:
            await exchange.close()

    async def list_models(self) -> list[str]:
        """The ids of the provider's models. Raises `ProviderError`s."""
        return await (await self._load_client()).list_models()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        if self._connections:
            await self._connections.aclose()
        if self._sdk:
            await self._sdk.aclose()

    async def _load_client(self) -> "sdk.SdkClient":
        """The SDK's client, imported in a thread when first needed, which takes half a second."""
        if self._sdk is None:
            async with self._load_lock:
                if self._sdk is None:
                    await anyio.to_thread.run_sync(load_sdk)
                    self._sdk = self._create_sdk()
        return self._sdk

    def _build_body(self, request: ProviderRequest) -> bytes:
        chat = request.chat
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages if chat is None else chat.messages,
        }
        if chat is not None:
            body |= chat.fields
        if body.keys().isdisjoint(MAX_TOKENS_FIELDS):
            body[self._max_tokens_field] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.stream:
            options = {} if chat is None else chat.stream_options
            body |= {"stream": True, "stream_options": {**options, "include_usage": True}}
        return to_json(body)

    async def _send_request(
        self, body: bytes, on_sent: Callable[[], None], trace_headers: tuple[bytes, ...]
    ) -> Exchange:
        if self._connections is None:
            return await self._send_by_sdk(body, on_sent, trace_headers)
        self._head = head = self._head or await (await self._load_client()).build_head()
        if trace_headers:
            head += b"".join(line + b"\r\n" for line in trace_headers)
        connection = await self._connections.send_request(
            b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)
        )
        on_sent()
        try:
            await connection.wait_head()
            refusal = None if 200 <= connection.status < 300 else await _read_refusal(connection)
        except BaseException:
            await connection.close()
            raise
        if refusal:
            await connection.close()
            raise refusal
        return connection

    async def _send_by_sdk(
        self, body: bytes, on_sent: Callable[[], None], trace_headers: tuple[bytes, ...]
    ) -> Exchange:
        """Send through the SDK, which does not report whether a cancelled request was sent."""
        client = await self._load_client()
        try:
            exchange = await client.send_post(body, trace_headers=trace_headers)
        except ProviderUnreachable:
            raise
        except BaseException:
            on_sent()
            raise
        on_sent()
        return exchange

    async def _stream_deltas(
        self, exchange: Exchange, request: ProviderRequest
    ) -> AsyncGenerator[list[Delta], None]:
        decoder = StreamDecoder(keep_chunks=request.chat is not None)
        finished, size = False, 0
        parts: list[bytes] = []  # of a large read, the next one last
        while not decoder.done:
            if parts:
                await asyncio.sleep(0)  # other tasks get a turn
                part = parts.pop()
            else:
                part = await exchange.read()
                if len(part) > WHOLE_READ_BYTES_MAX:
                    parts = split_read(part)
                    part = parts.pop()
            deltas = decoder.feed(part) if part else decoder.end()
            for delta in deltas:
                size += len(delta.text) if delta.text.isascii() else len(delta.text.encode())
                size += len(delta.other_text)
                finished = finished or bool(delta.finish_reason)
            if size > self._answer_bytes_max:
                raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
            if deltas:
                yield deltas
            if decoder.error:
                raise decoder.error
            if not part:
                break
        if not finished:
            raise ProviderCut("the provider ended the answer without saying that it was finished")

    async def _read_completion(self, exchange: Exchange, request: ProviderRequest) -> Delta:
        keep_chunk, body = request.chat is not None, bytearray()
        while data := await exchange.read():
            body += data
            if len(body) > self._body_bytes_max:
                raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
        if len(body) > INLINE_BYTES_MAX:
            delta = await anyio.to_thread.run_sync(decode_completion, bytes(body), keep_chunk)
        else:
            delta = decode_completion(bytes(body), keep_chunk)
        if not delta.finish_reason:
            raise ProviderCut("the provider ended the answer without saying that it was finished")
        return delta


def _needs_proxy(url: httpx2.URL) -> bool:
    """Whether the environment configures a proxy for this URL."""
    proxies = urllib.request.getproxies()
    return bool(
        (proxies.get(url.scheme) or proxies.get("all"))
        and not urllib.request.proxy_bypass(url.host)
    )


async def _read_refusal(connection: HttpConnection) -> ProviderError:
    """The exception for an error response, with the message from its body."""
    body = bytearray()
    with suppress(ProviderError):
        while len(body) < ERROR_BYTES_MAX and (data := await connection.read()):
            body += data
    try:
        error_object = msgspec.json.decode(body[:ERROR_BYTES_MAX].removeprefix(BYTE_ORDER_MARK))
    except (msgspec.DecodeError, RecursionError):
        error_object = None
    if isinstance(error_object, dict):
        error_object = error_object.get("error", error_object)
    return error_from_refusal(
        connection.status,
        connection.headers.get(b"retry-after", b"").decode("latin-1"),
        error_object,
    )


def load_sdk() -> None:
    """Import the SDK before the first request. Takes half a second."""
    load_module(sdk)


def create_openai_provider(config: ProviderConfig, answer_bytes_max: int) -> OpenAIProvider:
    """Create a provider of the catalog."""
    return OpenAIProvider(
        base_url=config.base_url,
        api_key=config.api_key,
        headers=config.headers,
        connect_seconds=config.connect_seconds,
        idle_seconds=config.idle_seconds,
        answer_bytes_max=answer_bytes_max,
    )
