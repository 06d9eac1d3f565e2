"""The one door to `openai`, the SDK: what a request looks like, and requests that need more than a plain connection.

Its response models stay out: bodies are handed out as they come. Three things it would do by itself are switched off:

1. retries (`max_retries=0`): each try may be billed, so `core/answering/pump.py` owns and counts them;
2. redirects: they would carry the key to another host;
3. compression: a small body that inflates without bound is refused instead of being read. Bodies of errors are cut.

Its errors, and those of its transport, are translated here and nowhere else. What matters most is whether the request may
have reached the provider.

Importing it takes a third of the whole start, so `openai.py` loads this module when it is first needed.
"""

import re
import ssl
from collections.abc import AsyncGenerator
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
from service.core.providers.chat_stream import ERROR_BYTES_MAX, error_from_refusal
from service.core.providers.http1 import KEEP_ALIVE_SECONDS, TAIL_SECONDS

CONNECTIONS_MAX = 2000
_BROKEN = re.compile(rb"[\0\r\n]")
_SENT_NOTHING = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_FOREIGN = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)


class SdkClient:
    """The SDK's client for one provider. `transport` replaces the network by something in this process."""

    def __init__(
        self,
        *,
        url: httpx2.URL,
        api_key: str | None,
        tls: ssl.SSLContext,
        transport: httpx2.AsyncBaseTransport | None,
        connect_seconds: float,
        idle_seconds: float,
    ) -> None:
        timeout = httpx2.Timeout(idle_seconds, connect=connect_seconds, pool=connect_seconds)
        limits = httpx2.Limits(
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_MAX,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        )
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "none",  # local servers want none, the SDK wants some
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                transport=transport,
                verify=tls,
                timeout=timeout,
                limits=limits,
                event_hooks={"response": [_bound_error_body]},
            ),
            default_headers={"Accept-Encoding": "identity"},
        )

    async def head(self) -> bytes:
        """What the SDK sends before a body, but for its length. It is asked to send one, and what it sends stays here."""
        written = _Written()
        async with httpx2.AsyncClient(transport=written) as http_client:
            await _post(self._client.with_options(http_client=http_client), b"")
        headers = [
            b"%s: %s" % header
            for header in written.headers
            if header[0].lower() != b"content-length"
        ]
        head = [b"POST %s HTTP/1.1" % written.path, *headers]
        if any(
            _BROKEN.search(line) for line in head
        ):  # a key with a line end in it would go on as another header
            raise ProviderRefused("the key or the base URL has characters that no header may have")
        return b"\r\n".join([*head, b""])

    async def post(self, body: bytes, path: str = "/chat/completions") -> "SdkExchange":
        """Send a request. Raises `ProviderError`s."""
        try:
            return SdkExchange(await _post(self._client, body, path))
        except _FOREIGN as error:
            raise translate_error(error) from error

    async def models(self) -> list[str]:
        """The models that the provider offers. Raises `ProviderError`s."""
        try:
            return [model.id async for model in self._client.models.list()]
        except _FOREIGN as error:
            raise translate_error(error) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.close()


class SdkExchange:
    """An answer on its way, as the SDK has it."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        # One that was made whole, in this process, is read already.
        self._parts = (
            _once(response.content) if response.is_stream_consumed else response.aiter_raw()
        )

    def encoding(self) -> bytes:
        """See `Exchange.encoding`."""
        return str(self._response.headers.get("content-encoding", "")).encode()

    async def read(self) -> bytes:
        """See `Exchange.read`."""
        try:
            return await anext(self._parts, b"")
        except _FOREIGN as error:
            raise translate_error(error) from error

    async def close(self, *, tail: bool = False) -> None:
        """See `Exchange.close`."""
        with suppress(*_FOREIGN):
            if tail:
                with anyio.move_on_after(TAIL_SECONDS):
                    async for _ in self._parts:
                        pass
        with (
            anyio.CancelScope(shield=True),
            suppress(Exception),
        ):  # closing must not hide what went wrong
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


class _Written(httpx2.AsyncBaseTransport):
    """Keeps the request that it is given."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.path, self.headers = request.url.raw_path, request.headers.raw
        return httpx2.Response(200, request=request)


async def _post(
    client: openai.AsyncOpenAI, body: bytes, path: str = "/chat/completions"
) -> httpx2.Response:
    """The SDK's low-level call: `stream` leaves the body unread, and this `cast_to` hands out the raw response."""
    post: Any = client.post
    options = {"headers": {"Content-Type": "application/json"}}
    response: httpx2.Response = await post(
        path, content=body, options=options, cast_to=httpx2.Response, stream=True
    )
    return response


def translate_error(error: Exception) -> ProviderError:
    """The one map from the SDK's and its transports' exceptions to ours. Total: a test enumerates theirs."""
    if any(isinstance(cause, _SENT_NOTHING) for cause in _causes(error)):
        return ProviderUnreachable("no connection to the provider")
    if isinstance(error, openai.APIStatusError):
        return error_from_refusal(
            error.status_code, error.response.headers.get("retry-after", ""), error.body
        )
    if any(
        isinstance(cause, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError)
        for cause in _causes(error)
    ):
        return ProviderTimeout("the provider was silent for too long")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError | httpx2.StreamError):
        return ProviderCut("the connection to the provider broke")
    return ProviderInvalid("the provider's answer could not be read")


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__
    return chain
