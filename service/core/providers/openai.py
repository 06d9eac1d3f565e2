"""The one door to `openai`: any provider that speaks its protocol, the embedded ones included.

The client is `AsyncOpenAI`: it knows where the provider is, how a request is authenticated and which headers it carries.
It is asked once, since asking it each time was the largest part of what an answer cost (docs/performance.md): the head
that it writes is the same for every request, and goes before every body, over `connections`. Its response models stay
out as well: bodies are read as raw bytes, bounded, and parsed once by `wire`. What needs more than a plain connection
(a proxy, the embedded model) goes through the client whole. Three things it would do by itself are switched off:

1. retries (`max_retries=0`): each try may be billed, so `core/pump.py` owns and counts them;
2. redirects: they would carry the key to another host;
3. compression: a small body that inflates without bound is refused instead of being read. Bodies of errors are cut.

Errors are translated here and nowhere else. What matters most is whether the request may have reached the provider.
"""

import re
import ssl
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Protocol

import anyio
import httpx2
import msgspec
import openai

from service.core.errors import (
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderInvalid,
    ProviderRefused,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnreachable,
)
from service.core.events import to_json
from service.core.ports import Delta, ProviderRequest
from service.core.providers.connections import KEEP_ALIVE_SECONDS, TAIL_SECONDS, Connection, Connections
from service.core.providers.wire import StreamDecoder, decode_completion

OPENAI_URL = "https://api.openai.com/v1"
PROXIED_MAX = 2000  # connections through a proxy
ERROR_BYTES_MAX = 65_536  # read of the body of an error status
_BROKEN = re.compile(rb"[\0\r\n]")
_SENT_NOTHING = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


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
        connect_seconds: float,
        idle_seconds: float,
        answer_bytes_max: int,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        url = httpx2.URL(base_url or OPENAI_URL)
        # Reading the certificates of all authorities takes a while; an address without TLS is never asked for one.
        tls = httpx2.create_ssl_context() if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        timeout = httpx2.Timeout(idle_seconds, connect=connect_seconds, pool=connect_seconds)
        limits = httpx2.Limits(max_connections=PROXIED_MAX, max_keepalive_connections=PROXIED_MAX, keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "none",  # local servers want none, the SDK wants some
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                transport=transport, verify=tls, timeout=timeout, limits=limits, event_hooks={"response": [_bound_error_body]}
            ),
            default_headers={"Accept-Encoding": "identity"},
        )
        self._connections = None
        if transport is None and not url.userinfo and not _proxied(url):
            port, tls_needed = url.port or (443 if url.scheme == "https" else 80), tls if url.scheme == "https" else None
            self._connections = Connections(url.host, port, tls_needed, connect_seconds=connect_seconds, idle_seconds=idle_seconds)
        self._head = b""
        # OpenAI's newer models refuse the old name, most compatible servers do not know the new one.
        self._max_tokens_field = "max_completion_tokens" if url.host == "api.openai.com" else "max_tokens"
        # Every byte of text takes at most six as a JSON escape; the rest is the envelope.
        self._body_bytes_max = answer_bytes_max * 6 + 65_536
        self._answer_bytes_max = answer_bytes_max

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[list[Delta], None]:
        """See `Provider.stream`."""
        try:
            exchange = await self._post(self._body(request))
            tail = False
            try:
                if exchange.encoding() not in {b"", b"identity"}:
                    raise ProviderInvalid("the provider sent a compressed body, though none was accepted")
                if request.stream:
                    async for deltas in self._streamed(exchange):
                        yield deltas
                else:
                    yield [await self._whole(exchange)]
                tail = True
            finally:
                await exchange.close(tail=tail)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError) as error:
            raise translate(error) from error

    async def models(self) -> list[str]:
        """The models that the provider offers. Raises `ProviderError`s."""
        try:
            return [model.id async for model in self._client.models.list()]
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise translate(error) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        if self._connections:
            await self._connections.aclose()
        await self._client.close()

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
            return _Sdk(await _post(self._client, body))
        self._head = self._head or await _head(self._client)
        connection = await self._connections.exchange(b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(body), body))
        try:
            await connection.wait_head()
            refusal = None if 200 <= connection.status < 300 else await _refused(connection)
        except BaseException:
            await connection.close()
            raise
        if refusal:
            await connection.close()
            raise refusal
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


class _Sdk:
    """An exchange of the SDK's own."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        # One that was made whole, in this process, is read already.
        self._parts = _once(response.content) if response.is_stream_consumed else response.aiter_raw()

    def encoding(self) -> bytes:
        return str(self._response.headers.get("content-encoding", "")).encode()

    async def read(self) -> bytes:
        return await anext(self._parts, b"")

    async def close(self, *, tail: bool = False) -> None:
        if tail:
            with anyio.move_on_after(TAIL_SECONDS):
                async for _ in self._parts:
                    pass
        with anyio.CancelScope(shield=True), suppress(Exception):  # closing must not hide what went wrong
            await self._response.aclose()


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


class _Bounded(httpx2.AsyncByteStream):
    """The beginning of a body."""

    def __init__(self, whole: httpx2.AsyncByteStream) -> None:
        self._whole = whole

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        size = 0
        async for data in self._whole:
            yield data[: ERROR_BYTES_MAX - size]
            size += len(data)
            if size >= ERROR_BYTES_MAX:
                return

    async def aclose(self) -> None:
        await self._whole.aclose()


async def _bound_error_body(response: httpx2.Response) -> None:
    """The SDK reads the body of an error whole, to find a message in it: let it find no more than the beginning, undecoded."""
    if response.status_code >= 400 and isinstance(response.stream, httpx2.AsyncByteStream):
        response.headers.pop("content-encoding", None)
        response.stream = _Bounded(response.stream)


def _proxied(url: httpx2.URL) -> bool:
    """Whether the environment names a proxy for this address."""
    proxies = urllib.request.getproxies()
    return bool((proxies.get(url.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(url.host))


async def _head(client: openai.AsyncOpenAI) -> bytes:
    """What the SDK sends before a body, but for its length. It is asked to send one, and what it sends stays here."""
    written = _Written()
    async with httpx2.AsyncClient(transport=written) as http_client:
        await _post(client.with_options(http_client=http_client), b"")
    head = [
        b"POST %s HTTP/1.1" % written.path,
        *(b"%s: %s" % header for header in written.headers if header[0].lower() != b"content-length"),
    ]
    if any(_BROKEN.search(line) for line in head):  # a key with a line end in it would go on as another header
        raise ProviderRefused("the key or the base URL has characters that no header may have")
    return b"\r\n".join([*head, b""])


class _Written(httpx2.AsyncBaseTransport):
    """Keeps the request that it is given."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.path, self.headers = request.url.raw_path, request.headers.raw
        return httpx2.Response(200, request=request)


async def _post(client: openai.AsyncOpenAI, body: bytes) -> httpx2.Response:
    """The SDK's low-level call: `stream` leaves the body unread, and this `cast_to` hands out the raw response."""
    post: Any = client.post
    options = {"headers": {"Content-Type": "application/json"}}
    response: httpx2.Response = await post("/chat/completions", content=body, options=options, cast_to=httpx2.Response, stream=True)
    return response


async def _refused(connection: Connection) -> ProviderError:
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
    return _refusal(connection.status, connection.headers.get(b"retry-after", b"").decode("latin-1"), said)


def translate(error: Exception) -> ProviderError:
    """The one map from the SDK's and its transports' exceptions to ours. Total: a test enumerates theirs."""
    if any(isinstance(cause, _SENT_NOTHING) for cause in _causes(error)):
        return ProviderUnreachable("no connection to the provider")
    if isinstance(error, openai.APIStatusError):
        return _refusal(error.status_code, error.response.headers.get("retry-after", ""), error.body)
    if any(isinstance(cause, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError) for cause in _causes(error)):
        return ProviderTimeout("the provider was silent for too long")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError | httpx2.StreamError):
        return ProviderCut("the connection to the provider broke")
    return ProviderInvalid("the provider's answer could not be read")


def _refusal(status: int, retry_after: str, said: object) -> ProviderError:
    """The error of a status. `said`: the error object of the body, if it has one."""
    said = said if isinstance(said, dict) else {}
    if status in {429, 503}:
        return ProviderBusy(f"the provider answered {status}", retry_after_seconds=_retry_after(retry_after))
    if status in {408, 504}:
        return ProviderTimeout(f"the provider answered {status}")
    if status >= 500:
        return ProviderError(f"the provider answered {status}")
    if status in {401, 403} or (status == 404 and said.get("code") != "model_not_found"):
        # Its words may repeat parts of the key; they are not passed on.
        return ProviderRefused(f"the provider answered {status}: check the key, the base URL and the model")
    return ProviderRejected(f"the provider answered {status}: {str(said.get('message') or 'no reason given')[:500]}")


def _retry_after(value: str) -> int | None:
    return min(int(value), 3600) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__
    return chain
