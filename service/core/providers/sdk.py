"""The OpenAI SDK: builds request heads, and sends requests that need more than a plain connection.

The only module that imports `openai`. It does not use the SDK's response models: bodies are
returned as bytes. Three of the SDK's features are disabled:

1. retries (`max_retries=0`): every attempt may be billed, so `core/answering/pump.py` retries
   (except reads of an organization's account, which change nothing);
2. redirects: they would send the key to another host;
3. compression: a small body could inflate without bound. Error bodies are truncated.

Exceptions of the SDK and its transport are translated only here. The most important distinction is
whether the request may have reached the provider.

The import takes a third of the startup time, so `openai.py` loads this module lazily.
"""

import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import openai

from service.core.errors import (
    ProviderCut,
    ProviderError,
    ProviderInvalid,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnreachable,
)
from service.core.http1 import KEEP_ALIVE_SECONDS, TAIL_SECONDS
from service.core.providers.chat_stream import ERROR_BYTES_MAX, error_from_refusal

CONNECTIONS_MAX = 2000
READS_MAX, READ_SECONDS = 5, 60.0  # attempts and seconds of a read of an organization's account
_INVALID_IN_HEADER = re.compile(rb"[\0\r\n]")
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_SDK_ERRORS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)


class SdkClient:
    """The SDK's client for one provider. `transport` replaces the network.

    `headers`: sent with every request.
    """

    def __init__(
        self,
        *,
        url: httpx2.URL,
        api_key: str | None,
        tls: ssl.SSLContext,
        transport: httpx2.AsyncBaseTransport | None,
        connect_seconds: float,
        idle_seconds: float,
        headers: Mapping[str, str],
    ) -> None:
        timeout = httpx2.Timeout(idle_seconds, connect=connect_seconds, pool=connect_seconds)
        limits = httpx2.Limits(
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_MAX,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        )
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "none",  # the SDK requires one, local servers do not
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                transport=transport,
                verify=tls,
                timeout=timeout,
                limits=limits,
                event_hooks={"response": [_bound_error_body]},
            ),
            default_headers={**headers, "Accept-Encoding": "identity"},
        )

    async def build_head(self) -> bytes:
        """The head that the SDK sends before a body, without Content-Length.

        A request is sent through a transport that only records it.
        """
        transport = _RecordingTransport()
        async with httpx2.AsyncClient(transport=transport) as http_client:
            await _send_post(self._client.with_options(http_client=http_client), b"")
        headers = [
            b"%s: %s" % header
            for header in transport.headers
            if header[0].lower() != b"content-length"
        ]
        head = [b"POST %s HTTP/1.1" % transport.path, *headers]
        # A line end in the key would start another header.
        if any(_INVALID_IN_HEADER.search(line) for line in head):
            raise ProviderRefused("the key or the base URL contains characters invalid in a header")
        return b"\r\n".join([*head, b""])

    async def send_post(
        self,
        body: bytes,
        path: str = "/chat/completions",
        *,
        trace_headers: tuple[bytes, ...] = (),
    ) -> "SdkExchange":
        """Send a request. Raises `ProviderError`s."""
        try:
            return SdkExchange(await _send_post(self._client, body, path, trace_headers))
        except _SDK_ERRORS as error:
            raise translate_error(error) from error

    async def list_models(self) -> list[str]:
        """The ids of the provider's models. Raises `ProviderError`s."""
        try:
            return [model.id async for model in self._client.models.list()]
        except _SDK_ERRORS as error:
            raise translate_error(error) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.close()


class OrganizationClient:
    """Reads the account of an organization with an admin key. The SDK repeats failed reads."""

    def __init__(self, *, url: str, admin_key: str) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key="none",  # the SDK requires one
            max_retries=READS_MAX - 1,
            timeout=READ_SECONDS,
            default_headers={"Authorization": f"Bearer {admin_key}"},
        )

    async def fetch(self, path: str, query: Mapping[str, object]) -> bytes:
        """The body of `/organization/{path}`. Raises `ProviderError`s."""
        try:
            response = await self._client.get(
                f"/organization/{path}", options={"params": query}, cast_to=httpx2.Response
            )
        except _SDK_ERRORS as error:
            raise translate_error(error) from error
        return response.content

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.close()


class SdkExchange:
    """An `Exchange` through the SDK."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        # A response that was created in this process is already consumed.
        self._parts = (
            _iterate_once(response.content) if response.is_stream_consumed else response.aiter_raw()
        )

    def content_encoding(self) -> bytes:
        """See `Exchange.encoding`."""
        return str(self._response.headers.get("content-encoding", "")).encode()

    async def read(self) -> bytes:
        """See `Exchange.read`."""
        try:
            return await anext(self._parts, b"")
        except _SDK_ERRORS as error:
            raise translate_error(error) from error

    async def close(self, *, tail: bool = False) -> None:
        """See `Exchange.close`."""
        with suppress(*_SDK_ERRORS):
            if tail:
                with anyio.move_on_after(TAIL_SECONDS):
                    async for _ in self._parts:
                        pass
        # An error while closing must not replace the original one.
        with anyio.CancelScope(shield=True), suppress(Exception):
            await self._response.aclose()


async def _iterate_once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


class _BoundedStream(httpx2.AsyncByteStream):
    """The first `ERROR_BYTES_MAX` bytes of a body."""

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
    """Truncate an error body: the SDK reads all of it to extract the message."""
    if response.status_code >= 400 and isinstance(response.stream, httpx2.AsyncByteStream):
        response.headers.pop("content-encoding", None)
        response.stream = _BoundedStream(response.stream)


class _RecordingTransport(httpx2.AsyncBaseTransport):
    """Records the request instead of sending it."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.path, self.headers = request.url.raw_path, request.headers.raw
        return httpx2.Response(200, request=request)


async def _send_post(
    client: openai.AsyncOpenAI,
    body: bytes,
    path: str = "/chat/completions",
    trace_headers: tuple[bytes, ...] = (),
) -> httpx2.Response:
    """The SDK's low-level call: `stream` leaves the body unread, `cast_to` returns the response."""
    post: Any = client.post
    headers = {"Content-Type": "application/json"}
    for line in trace_headers:
        name, _, value = line.decode("latin-1").partition(": ")
        headers[name] = value
    options = {"headers": headers}
    response: httpx2.Response = await post(
        path, content=body, options=options, cast_to=httpx2.Response, stream=True
    )
    return response


def translate_error(error: Exception) -> ProviderError:
    """Map an exception of the SDK or its transport. Total: a test enumerates the exceptions."""
    if any(isinstance(cause, _NOT_SENT) for cause in _list_causes(error)):
        return ProviderUnreachable("no connection to the provider")
    if isinstance(error, openai.APIStatusError):
        return error_from_refusal(
            error.status_code, error.response.headers.get("retry-after", ""), error.body
        )
    if any(
        isinstance(cause, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError)
        for cause in _list_causes(error)
    ):
        return ProviderTimeout("the provider was silent for too long")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError | httpx2.StreamError):
        return ProviderCut("the connection to the provider broke")
    return ProviderInvalid("the provider's answer could not be read")


def _list_causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__
    return chain
