"""The one door to `openai`: any provider that speaks its protocol, the embedded ones included.

The client is `AsyncOpenAI`, for its request building, its authentication and its errors. Its response models stay out:
bodies are read as raw bytes, bounded, and parsed once by `wire`. Three things it would do by itself are switched off:

1. retries (`max_retries=0`): each try may be billed, so `core/answer.py` owns and counts them;
2. redirects: they would carry the key to another host;
3. compression: a small body that inflates without bound is refused instead of being read. Bodies of errors are cut.

Errors are translated here and nowhere else. What matters most is whether the request may have reached the provider:
aiohttp's disconnect errors arrive as "connect timeout" through the SDK's transport, so the cause is asked, not the type.
"""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import aiohttp
import anyio
import httpx2
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
from service.core.providers.wire import StreamDecoder, decode_completion

OPENAI_URL = "https://api.openai.com/v1"
CONNECTIONS_MAX = 2000
KEEP_ALIVE_SECONDS = 3  # shorter than what servers allow (uvicorn: 5), so that a request rarely meets a closing connection
ERROR_BYTES_MAX = 65_536  # read of the body of an error status
TAIL_SECONDS = 0.1  # wait after [DONE] for the end of the body, without which the connection cannot be used again
_SENT_NOTHING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.ConnectError, httpx2.PoolTimeout)


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
        url = base_url or OPENAI_URL
        timeout = httpx2.Timeout(idle_seconds, connect=connect_seconds, pool=connect_seconds)
        limits = httpx2.Limits(
            max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=KEEP_ALIVE_SECONDS
        )
        http_client = (
            httpx2.AsyncClient(transport=transport, timeout=timeout)
            if transport
            else openai.DefaultAioHttpClient(
                timeout=timeout, limits=limits, follow_redirects=False, event_hooks={"response": [_bound_error_body]}
            )
        )
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "none",  # local servers want none, the SDK wants some
            max_retries=0,
            timeout=timeout,
            http_client=http_client,
            default_headers={"Accept-Encoding": "identity"},
        )
        # OpenAI's newer models refuse the old name, most compatible servers do not know the new one.
        self._max_tokens_field = "max_completion_tokens" if httpx2.URL(url).host == "api.openai.com" else "max_tokens"
        # Every byte of text takes at most six as a JSON escape; the rest is the envelope.
        self._body_bytes_max = answer_bytes_max * 6 + 65_536
        self._answer_bytes_max = answer_bytes_max

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[list[Delta], None]:
        """See `Provider.stream`."""
        try:
            response = await self._post(request)
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise ProviderInvalid("the provider sent a compressed body, though none was accepted")
                parts = self._streamed(response) if request.stream else self._whole(response)
                async for deltas in parts:
                    yield deltas
            finally:
                with anyio.CancelScope(shield=True), suppress(Exception):  # closing must not hide what went wrong
                    await response.aclose()
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError) as error:
            raise translate(error) from error

    async def models(self) -> list[str]:
        """The models that the provider offers. Raises `ProviderError`s."""
        try:
            return [model.id async for model in self._client.models.list()]
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise translate(error) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.close()

    async def _post(self, request: ProviderRequest) -> httpx2.Response:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            self._max_tokens_field: request.max_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        # The low-level call: `stream` leaves the body unread, and this `cast_to` hands out the raw response.
        post: Any = self._client.post
        response: httpx2.Response = await post(
            "/chat/completions",
            content=to_json(body),
            options={"headers": {"Content-Type": "application/json"}},
            cast_to=httpx2.Response,
            stream=True,
        )
        return response

    async def _streamed(self, response: httpx2.Response) -> AsyncGenerator[list[Delta], None]:
        decoder, finished, size = StreamDecoder(), False, 0
        parts = response.aiter_raw()
        async for data in parts:
            deltas = decoder.feed(data)
            size += sum(len(delta.text.encode()) for delta in deltas)
            if size > self._answer_bytes_max:
                raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
            finished = finished or any(delta.finish_reason for delta in deltas)
            if deltas:
                yield deltas
            if decoder.error:
                raise decoder.error
            if decoder.done:
                break
        else:
            if deltas := decoder.end():
                finished = finished or any(delta.finish_reason for delta in deltas)
                yield deltas
            if decoder.error:
                raise decoder.error
        if not finished:
            raise ProviderCut("the provider ended the answer without saying that it was finished")
        with anyio.move_on_after(TAIL_SECONDS):
            async for _ in parts:
                pass

    async def _whole(self, response: httpx2.Response) -> AsyncGenerator[list[Delta], None]:
        body = bytearray()
        if response.is_stream_consumed:  # made whole, in this process
            body += response.content
        else:
            async for data in response.aiter_raw():
                body += data
                if len(body) > self._body_bytes_max:
                    raise ProviderInvalid(f"the answer is longer than {self._answer_bytes_max} bytes")
        delta = decode_completion(bytes(body))
        if not delta.finish_reason:
            raise ProviderCut("the provider ended the answer without saying that it was finished")
        yield [delta]


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


def translate(error: Exception) -> ProviderError:
    """The one map from the SDK's and its transports' exceptions to ours. Total: a test enumerates theirs."""
    if any(isinstance(cause, _SENT_NOTHING) for cause in _causes(error)):
        return ProviderUnreachable("no connection to the provider")
    if isinstance(error, openai.APIStatusError):
        return _translate_status(error)
    # aiohttp's ServerDisconnectedError comes dressed as httpx2.ConnectTimeout in an APITimeoutError: see the essay.
    if any(
        isinstance(cause, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError) for cause in _causes(error)
    ):
        return ProviderCut("the connection to the provider broke")
    if any(isinstance(cause, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError) for cause in _causes(error)):
        return ProviderTimeout("the provider was silent for too long")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError | httpx2.StreamError | aiohttp.ClientConnectionError):
        return ProviderCut("the connection to the provider broke")
    return ProviderInvalid("the provider's answer could not be read")


def _translate_status(error: openai.APIStatusError) -> ProviderError:
    status = error.status_code
    if status in {429, 503}:
        return ProviderBusy(f"the provider answered {status}", retry_after_seconds=_retry_after(error))
    if status in {408, 504}:
        return ProviderTimeout(f"the provider answered {status}")
    if status >= 500:
        return ProviderError(f"the provider answered {status}")
    if status in {401, 403} or (status == 404 and error.code != "model_not_found"):
        # Its words may repeat parts of the key; they are not passed on.
        return ProviderRefused(f"the provider answered {status}: check the key, the base URL and the model")
    body = error.body if isinstance(error.body, dict) else {}
    return ProviderRejected(f"the provider answered {status}: {str(body.get('message') or 'no reason given')[:500]}")


def _retry_after(error: openai.APIStatusError) -> int | None:
    value = error.response.headers.get("retry-after", "")
    return min(int(value), 3600) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__
    return chain
