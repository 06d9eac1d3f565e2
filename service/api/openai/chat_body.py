"""Bodies of `POST /v1/chat/completions`: what Kotae needs is validated, everything is passed on.

The members of a body stay JSON as it was sent, so the provider receives numbers, unknown members
and content parts unchanged. Not passed on are Kotae's own `grounded` and `documents`; `model`,
`stream` and `stream_options` are set.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from service.api.json_bodies import repair_surrogates
from service.api.openai.rejections import reject
from service.core import tokens
from service.core.errors import InvalidRequest
from service.core.ports import MAX_TOKENS_FIELDS, ChatCall
from service.core.records import Message
from service.core.settings import Settings

GROUNDED_PREFIX = "kotae/"
CHOICES_MAX = 128
DOCUMENTS_MAX = 100
IDENTIFIER_CHARACTERS_MAX = 200
# Upper bound of the tokens of a part that is not text, such as an image, in addition to its bytes.
MEDIA_TOKENS_MAX = 5_000
T = TypeVar("T")
_OWN_FIELDS = ("model", "messages", "stream", "stream_options", "grounded", "documents")
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"field `(\w+)`")

Identifier = Annotated[
    str,
    msgspec.Meta(
        min_length=1, max_length=IDENTIFIER_CHARACTERS_MAX, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$"
    ),
]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _BodyMessage(msgspec.Struct):
    """The members of a message that are validated."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None


class _BodyStreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    """The members of a body that are validated."""

    model: Identifier
    messages: Annotated[list[_BodyMessage], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    store: bool | None = None
    stream_options: _BodyStreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES_MAX)] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    logprobs: bool | None = None
    tools: list[dict[str, msgspec.Raw]] | None = None
    grounded: bool | None = None
    documents: (
        Annotated[list[Identifier], msgspec.Meta(min_length=1, max_length=DOCUMENTS_MAX)] | None
    ) = None


class ChatBody(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request.

    `model`: without prefix. `prompt`: the text of the last user message; `history`: the texts of
    the user and the assistant before it. `store` False: the texts are not kept.
    """

    model: str
    grounded: bool
    documents: list[str] | None
    stream: bool
    include_usage: bool
    store: bool
    max_tokens: int | None
    prompt: str
    history: list[Message]
    call: ChatCall


_body_decoder = msgspec.json.Decoder(_Body)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def parse_chat_body(raw: bytes, settings: Settings) -> ChatBody:
    """Validate a body. Raises `InvalidRequest` with the `param` that is wrong."""
    raw, body = decode_body(raw, _body_decoder)
    members = _members_decoder.decode(raw)
    grounded, model = _choose_grounding(body)
    _check_combinations(body, settings, grounded=grounded)
    fields = {name: value for name, value in members.items() if name not in _OWN_FIELDS}
    call = _build_call(body, members, fields, len(raw))
    question = call.question
    if grounded and question is None:
        raise reject("messages", "a grounded answer needs a message of the role user")
    prompt = call.texts[len(body.messages) - 1 if question is None else question].content
    if grounded and len(prompt) > settings.prompt_characters_max:
        raise reject(
            "messages",
            f"the question is longer than {settings.prompt_characters_max} characters"
            " (KOTAE_PROMPT_CHARACTERS_MAX)",
        )
    return ChatBody(
        model=model,
        grounded=grounded,
        documents=body.documents,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        store=body.store is not False,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        prompt=prompt,
        history=[
            message
            for message in call.texts[: question or 0]
            if message.role in {"user", "assistant"} and message.content
        ],
        call=call,
    )


def _choose_grounding(body: _Body) -> tuple[bool, str]:
    model = body.model.removeprefix(GROUNDED_PREFIX)
    if model != body.model:
        if body.grounded is False:
            raise reject("grounded", f"must not be false with the model {body.model!r}")
        if not model:
            raise reject("model", f"needs the name of a model after {GROUNDED_PREFIX}")
        return True, model
    return bool(body.grounded), model


def _check_combinations(body: _Body, settings: Settings, *, grounded: bool) -> None:
    if body.stream_options is not None and not body.stream:
        raise reject("stream_options", "is only allowed with stream: true")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise reject("max_tokens", "must not be combined with max_completion_tokens")
    if (body.max_completion_tokens or body.max_tokens or 0) > settings.max_tokens_max:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise reject(name, f"must be at most {settings.max_tokens_max} (KOTAE_MAX_TOKENS_MAX)")
    if grounded and (body.n or 1) > 1:
        raise reject("n", "must be 1 for a grounded answer")
    if body.documents is not None and not grounded:
        raise reject("documents", "needs a grounded answer: the model kotae/… or grounded: true")
    for position, message in enumerate(body.messages):
        if message.content is None and message.role in {"system", "developer", "user", "tool"}:
            raise reject(f"messages[{position}].content", "is required for this role")


def _build_call(
    body: _Body,
    members: dict[str, msgspec.Raw],
    fields: dict[str, msgspec.Raw],
    size: int,
) -> ChatCall:
    """`size`: of the body, the upper bound of the tokens of its texts."""
    media, question = 0, None
    texts: list[Message] = []
    for position, message in enumerate(body.messages):
        text = _read_text(message)
        texts.append(Message(message.role, text.replace("\0", "\ufffd") if "\0" in text else text))
        if message.role == "user":
            question = position
        if isinstance(message.content, list):
            media += sum(part.type not in {"text", "refusal"} for part in message.content)
    if body.tools or "response_format" in fields:
        described = [fields[name] for name in ("tools", "response_format") if name in fields]
        texts.append(Message("system", b"\n".join(map(bytes, described)).decode()))
    options = members.get("stream_options")
    return ChatCall(
        messages=_messages_decoder.decode(members["messages"]),
        # Without a value a limit is absent, so that Kotae sets it.
        fields=fields
        if body.max_tokens or body.max_completion_tokens
        else {name: value for name, value in fields.items() if name not in MAX_TOKENS_FIELDS},
        stream_options=msgspec.json.decode(options) or {} if options is not None else {},
        question=question,
        choices=body.n or 1,
        texts=texts,
        prompt_tokens_max=size
        + tokens.TEMPLATE_TOKENS * (len(texts) + 1)
        + MEDIA_TOKENS_MAX * media,
        prediction_tokens_max=len(bytes(fields["prediction"])) if "prediction" in fields else 0,
    )


def _read_text(message: _BodyMessage) -> str:
    """The text of a message, with its tool calls."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content if part.text)
    text = content or ""
    for tool_call in message.tool_calls or ():
        if tool_call.function is not None:
            text += f"{tool_call.function.name or ''}{tool_call.function.arguments or ''}"
    return text


def decode_body(raw: bytes, decoder: msgspec.json.Decoder[T]) -> tuple[bytes, T]:
    """Return a body with lone surrogates replaced, and decoded. Raises `InvalidRequest`."""
    try:
        raw.decode()
        return raw, decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raw = repair_surrogates(raw)
        try:
            return raw, decoder.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise _explain_decode_error(error, raw) from None


def _explain_decode_error(error: Exception, raw: bytes) -> InvalidRequest:
    """Name the member that is wrong, and the reason."""
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not valid JSON: {error}"[:300], extra={"param": None})
    match = _PLACE.fullmatch(str(error))
    what, where = (match["what"], match["where"]) if match else (str(error), None)
    if named := _NAMED.search(what):
        where = f"{where}.{named[1]}" if where else named[1]
    if where and where.startswith("messages[...]"):
        where = where.replace("[...]", f"[{_find_wrong_message(raw)}]", 1)
    return reject(where, what) if where else InvalidRequest(what)


def _find_wrong_message(raw: bytes) -> int:
    messages: list[Any] = json.loads(raw)["messages"]
    for position, message in enumerate(messages):
        try:
            msgspec.convert(message, _BodyMessage)
        except msgspec.ValidationError:
            return position
    return 0
