"""The embedded model: an OpenAI chat completions server without a socket.

A transport for `httpx2`, so that the whole of the real client stands before it: what works with it works with any other
provider. It answers from the context of a prompt with sentences of that context, as `core/grounding/extraction.py` chooses them, and
costs nothing. Bodies and streams follow https://platform.openai.com/docs/api-reference/chat: a role chunk, pieces of
text, a finish reason, usage when asked for, `[DONE]`.

What it does not do: sample, so `temperature` changes nothing; more than one choice; tools.
"""

import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import msgspec

from service.core import tokens
from service.core.encoding import to_json
from service.core.grounding.extraction import FREE, quote_answer
from service.core.grounding.prompt import parse_messages
from service.core.ports import Message
from service.core.pricing import Usage
from service.core.settings import EXTRACTIVE
from service.core.text.tokenizer import detect_language

PIECE = re.compile(
    r"\s*(?:[^\s\u2e80-\uffef]+(?:\s+[^\s\u2e80-\uffef]+){0,2}|[\u2e80-\uffef]{1,8})|\s+"
)  # a few words, or some Japanese
TOKENS_DEFAULT = 1024
INLINE_CHARACTERS = (
    1_000  # of a prompt; choosing among more can take longer than a loop should wait
)


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    """What is read of a request; the rest of the protocol is ignored."""

    messages: list[Message]
    model: str = EXTRACTIVE
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class ExtractiveTransport(httpx2.AsyncBaseTransport):
    """Answers `POST …/chat/completions` and `GET …/models` in this process."""

    def __init__(self, dictionary: str = "auto") -> None:
        self._dictionary = dictionary

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request of the protocol; errors are bodies and statuses, as from a server."""
        content = await request.aread()
        if request.url.path.endswith("/models"):
            return _json(
                request,
                200,
                {
                    "object": "list",
                    "data": [
                        {"id": EXTRACTIVE, "object": "model", "created": 0, "owned_by": "kotae"}
                    ],
                },
            )
        if not request.url.path.endswith("/chat/completions"):
            return _error(request, 404, f"there is no {request.url.path}")
        try:
            body = msgspec.json.decode(content, type=_Body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _error(request, 400, str(error))
        reply = await _reply(body, self._dictionary)
        if not body.stream:
            return _json(request, 200, reply.completion())
        usage = body.stream_options is not None and body.stream_options.include_usage
        return httpx2.Response(
            200,
            headers={"content-type": "text/event-stream; charset=utf-8"},
            stream=_Events(reply, usage=usage),
            request=request,
        )


def answer_extractively(messages: list[Message], dictionary: str = "auto") -> str:
    """The text that this model gives for a prompt. Pure."""
    asked = parse_messages(messages)
    return (
        FREE[detect_language(asked)] if isinstance(asked, str) else quote_answer(*asked, dictionary)
    )


class _Reply(msgspec.Struct, frozen=True):
    """An answer, complete before its first byte leaves."""

    model: str
    text: str
    finish_reason: str
    usage: Usage
    id: str
    created: int

    def completion(self) -> dict[str, Any]:
        """The body of an answer in one piece."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self.finish_reason,
            "logprobs": None,
        }
        return self._envelope("chat.completion", [choice]) | {"usage": self._usage()}

    def chunks(self, *, usage: bool) -> list[bytes]:
        """The events of a stream."""
        pieces: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            *({"content": piece} for piece in PIECE.findall(self.text)),
        ]
        events = [
            self._chunk([{"index": 0, "delta": piece, "finish_reason": None}]) for piece in pieces
        ]
        events.append(self._chunk([{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]))
        if usage:
            events.append(self._chunk([]) | {"usage": self._usage()})
        return [*(b"data: %s\n\n" % to_json(event) for event in events), b"data: [DONE]\n\n"]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope("chat.completion.chunk", choices)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "total_tokens": self.usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


async def _reply(body: _Body, dictionary: str) -> _Reply:
    text = await _in_time(body.messages, dictionary)
    limit = body.max_completion_tokens or body.max_tokens or TOKENS_DEFAULT
    usage = await tokens.estimate_usage(body.messages, text, body.model)
    finish_reason = "stop"
    if usage.completion_tokens > limit:
        text, finish_reason = tokens.truncate_text(text, limit, body.model), "length"
        usage = msgspec.structs.replace(usage, completion_tokens=limit)
    return _Reply(
        body.model, text, finish_reason, usage, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    )


async def _in_time(messages: list[Message], dictionary: str) -> str:
    if sum(len(message.content) for message in messages) <= INLINE_CHARACTERS:
        return answer_extractively(messages, dictionary)
    return await anyio.to_thread.run_sync(answer_extractively, messages, dictionary)


class _Events(httpx2.AsyncByteStream):
    """The body of a stream."""

    def __init__(self, reply: _Reply, *, usage: bool) -> None:
        self._chunks = reply.chunks(usage=usage)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        """Nothing is held."""
        self._chunks = []


def _json(request: httpx2.Request, status: int, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(
        status, headers={"content-type": "application/json"}, content=to_json(body), request=request
    )


def _error(request: httpx2.Request, status: int, message: str) -> httpx2.Response:
    return _json(
        request,
        status,
        {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
    )
