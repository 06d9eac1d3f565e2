"""The extractive model: an OpenAI chat completions server without a socket.

It is an `httpx2` transport, so requests pass through the same client as for other providers. It
answers with sentences of the context in the prompt, selected by `core/grounding/extraction.py`, or
by `core/grounding/meaning.py` where words cannot match, and costs nothing. Bodies and streams
follow https://platform.openai.com/docs/api-reference/chat: a role chunk, text chunks, a finish
reason, usage if requested, `[DONE]`.

Not supported: sampling (`temperature` and similar options have no effect). What would change the
form of the answer, such as tools or several choices, is rejected (400).
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
from service.core.grounding.history import join_questions
from service.core.grounding.meaning import quote_by_meaning
from service.core.grounding.prompt import parse_messages, refusal_text
from service.core.ports import VectorSearch
from service.core.pricing import Usage
from service.core.records import Message
from service.core.settings import EXTRACTIVE
from service.core.text.tokenizer import detect_language

# A few words, or some Japanese.
PIECE = re.compile(
    r"\s*(?:[^\s\u2e80-\uffef]+(?:\s+[^\s\u2e80-\uffef]+){0,2}|[\u2e80-\uffef]{1,8})|\s+"
)
TOKENS_DEFAULT = 1024
INLINE_CHARACTERS = 1_000  # length of a prompt; selecting sentences from more can block the loop


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _WireMessage(msgspec.Struct):
    """A message; only text is read."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def to_message(self) -> Message:
        """The message with its text."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(str(part["text"]) for part in content if part.get("text"))
        return Message(self.role, content or "")


class _CompletionRequest(msgspec.Struct):
    """The supported fields of a request, and those that are rejected; others have no effect."""

    messages: list[_WireMessage]
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    audio: Any = None
    model: str = EXTRACTIVE
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def find_unsupported(self) -> str | None:
        """Return the name of a field that the model cannot satisfy."""
        if (self.n or 1) != 1:
            return "n"
        if (self.response_format or {}).get("type", "text") != "text":
            return "response_format"
        names = ("tools", "functions", "stop", "logprobs", "audio")
        return next((name for name in names if getattr(self, name)), None)


class ExtractiveTransport(httpx2.AsyncBaseTransport):
    """Answers `POST …/chat/completions` and `GET …/models` in this process."""

    def __init__(self, dictionary: str = "auto", vectors: VectorSearch | None = None) -> None:
        """`vectors`: compares sentences in meaning where words cannot match."""
        self._dictionary, self._vectors = dictionary, vectors

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Handle a request. Errors are error responses, as from a server."""
        content = await request.aread()
        if request.url.path.endswith("/models"):
            return _create_json_response(
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
            return _create_error_response(request, 404, f"there is no {request.url.path}")
        try:
            body = msgspec.json.decode(content, type=_CompletionRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _create_error_response(request, 400, str(error))
        if unsupported := body.find_unsupported():
            return _create_error_response(
                request, 400, f"the extractive model does not support {unsupported}", unsupported
            )
        answer = await _create_answer(body, self._dictionary, self._vectors)
        if not body.stream:
            return _create_json_response(request, 200, answer.to_completion())
        usage = body.stream_options is not None and body.stream_options.include_usage
        return httpx2.Response(
            200,
            headers={"content-type": "text/event-stream; charset=utf-8"},
            stream=_EventStream(answer, usage=usage),
            request=request,
        )


def answer_extractively(messages: list[Message], dictionary: str = "auto") -> str:
    """The text with which the model answers a prompt.

    A follow-up question is answered from the first passage, because its own words are few. If they
    select no sentence there, they are read together with the previous questions.
    """
    prompt = parse_messages(messages)
    if isinstance(prompt, str):
        return FREE[detect_language(prompt)]
    question, passages = prompt
    if previous := join_questions(messages[:-1]):
        for text in (question, f"{question}\n{previous}"):
            answer = quote_answer(text, passages[:1], dictionary)
            if answer != refusal_text(text):
                return answer
    return quote_answer(question, passages, dictionary)


class _ExtractiveAnswer(msgspec.Struct, frozen=True):
    """An answer, complete before its first byte is sent."""

    model: str
    text: str
    finish_reason: str
    usage: Usage
    id: str
    created: int

    def to_completion(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self.finish_reason,
            "logprobs": None,
        }
        return self._create_envelope("chat.completion", [choice]) | {"usage": self._format_usage()}

    def to_chunks(self, *, usage: bool) -> list[bytes]:
        """The events of a stream."""
        pieces: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            *({"content": piece} for piece in PIECE.findall(self.text)),
        ]
        events = [
            self._create_chunk([{"index": 0, "delta": piece, "finish_reason": None}])
            for piece in pieces
        ]
        events.append(
            self._create_chunk([{"index": 0, "delta": {}, "finish_reason": self.finish_reason}])
        )
        if usage:
            events.append(self._create_chunk([]) | {"usage": self._format_usage()})
        return [*(b"data: %s\n\n" % to_json(event) for event in events), b"data: [DONE]\n\n"]

    def _create_chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._create_envelope("chat.completion.chunk", choices)

    def _create_envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _format_usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "total_tokens": self.usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


async def _create_answer(
    body: _CompletionRequest, dictionary: str, vectors: VectorSearch | None
) -> _ExtractiveAnswer:
    messages = [message.to_message() for message in body.messages]
    text = await _answer_without_blocking(messages, dictionary)
    if vectors:
        text = await _answer_by_meaning(messages, text, vectors, dictionary) or text
    limit = body.max_completion_tokens or body.max_tokens or TOKENS_DEFAULT
    usage = await tokens.estimate_usage(messages, text, body.model)
    finish_reason = "stop"
    if usage.completion_tokens > limit:
        text, finish_reason = tokens.truncate_text(text, limit, body.model), "length"
        usage = msgspec.structs.replace(usage, completion_tokens=limit)
    return _ExtractiveAnswer(
        body.model, text, finish_reason, usage, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    )


async def _answer_without_blocking(messages: list[Message], dictionary: str) -> str:
    if sum(len(message.content) for message in messages) <= INLINE_CHARACTERS:
        return answer_extractively(messages, dictionary)
    return await anyio.to_thread.run_sync(answer_extractively, messages, dictionary)


async def _answer_by_meaning(
    messages: list[Message], answer: str, vectors: VectorSearch, dictionary: str
) -> str | None:
    prompt = parse_messages(messages)
    if isinstance(prompt, str):
        return None
    question, passages = prompt
    return await quote_by_meaning(
        question,
        passages,
        answer,
        vectors,
        previous=join_questions(messages[:-1]),
        dictionary=dictionary,
    )


class _EventStream(httpx2.AsyncByteStream):
    """The body of a stream."""

    def __init__(self, answer: _ExtractiveAnswer, *, usage: bool) -> None:
        self._chunks = answer.to_chunks(usage=usage)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        """Discard the rest."""
        self._chunks = []


def _create_json_response(
    request: httpx2.Request, status: int, body: dict[str, Any]
) -> httpx2.Response:
    return httpx2.Response(
        status, headers={"content-type": "application/json"}, content=to_json(body), request=request
    )


def _create_error_response(
    request: httpx2.Request, status: int, message: str, param: str | None = None
) -> httpx2.Response:
    return _create_json_response(
        request,
        status,
        {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": "unsupported_parameter" if param else None,
            }
        },
    )
