"""Bodies of `POST /v1/responses`, translated to chat completion requests.

Providers have the chat protocol, so each member is translated or passed on, or rejected with its
name. Kotae itself keeps `store`, `metadata`, `background` and `previous_response_id`; a provider
never sees them. Reasoning items and searches of earlier responses are not sent to the provider: a
chat completion request has no place for them. `truncation` may have any value: nothing is
truncated.
"""

from typing import Any, Literal

import msgspec

from service.api.openai.chat_body import ChatBody, Identifier, decode_body, parse_chat_body
from service.api.openai.rejections import reject
from service.api.openai.responses_items import Item, build_messages
from service.core.encoding import to_json
from service.core.errors import InvalidRequest
from service.core.settings import Settings

ALL_DOCUMENTS = "kotae"  # as the id of a vector store
METADATA_MAX = 16
_INCLUDED = frozenset(
    {
        "file_search_call.results",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",  # there is none: chat completions have no such reasoning
    }
)
# Members that a chat completion request has under the same name.
_SAME = (
    "temperature", "top_p", "top_logprobs", "parallel_tool_calls", "service_tier", "user",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "presence_penalty",
    "frequency_penalty", "grounded", "documents",
)  # fmt: skip
# Members that are translated, or kept by Kotae.
_KNOWN = frozenset(
    {
        "model", "input", "instructions", "stream", "stream_options", "max_output_tokens",
        "max_tool_calls", "tools", "tool_choice", "text", "reasoning", "include", "truncation",
        "store", "metadata", "background", "previous_response_id", *_SAME,
    }
)  # fmt: skip
_REJECTED = {
    "conversation": "is not supported: use previous_response_id",
    "prompt": "is not supported: send the instructions and the input",
    "context_management": "is not supported: nothing is removed from the context",
}
# Of the errors of the chat completion request, the names in the original one.
_PARAMS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Tool(msgspec.Struct):
    """A function, or a search of the documents."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    vector_store_ids: list[Identifier] | None = None
    max_num_results: int | None = None
    filters: Any = None
    ranking_options: Any = None


class _RequestMembers(msgspec.Struct):
    """The members that are validated here; those with the name of a chat member are there."""

    model: Identifier
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class ResponsesBody(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request. `chat`: its translation. `members`: the body as it was sent."""

    chat: ChatBody
    members: dict[str, Any]
    background: bool


class _Reference(msgspec.Struct):
    previous_response_id: str | None = None


_decoder = msgspec.json.Decoder(_RequestMembers)


def find_previous_id(raw: bytes) -> str | None:
    """Return the id of the response that a request continues; None if the body is not valid."""
    try:
        return msgspec.json.decode(raw, type=_Reference).previous_response_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def parse_responses_body(
    raw: bytes, settings: Settings, previous: list[dict[str, Any]] | None = None
) -> ResponsesBody:
    """Validate and translate a body. Raises `InvalidRequest` with the `param` that is wrong.

    `previous`: the messages of the responses that this one continues.
    """
    raw, body = decode_body(raw, _decoder)
    members: dict[str, Any] = msgspec.json.decode(raw)
    _check_members(body, members)
    searches_files, documents = _read_file_search(body)
    translated = {
        name: members[name] for name in _SAME if name in members and members[name] is not None
    }
    translated |= {name: value for name, value in members.items() if name not in _KNOWN}
    translated |= {
        "model": body.model,
        "messages": _build_messages(body, members, previous or []),
        "stream": bool(body.stream),
    }
    translated |= _translate_options(body)
    if body.store is False:
        translated["store"] = False
    if searches_files:
        translated |= {"grounded": True} | ({"documents": documents} if documents else {})
    try:
        chat = parse_chat_body(to_json(translated), settings)
    except InvalidRequest as error:
        raise _rename_param(error) from None
    return ResponsesBody(
        chat=chat,
        members=members,
        background=bool(body.background),
    )


def _check_members(body: _RequestMembers, members: dict[str, Any]) -> None:
    for name, reason in _REJECTED.items():
        if members.get(name) is not None:
            raise reject(name, reason)
    for position, name in enumerate(body.include or ()):
        if name not in _INCLUDED:
            raise reject(f"include[{position}]", f"{name!r} is not available")
    if body.background and body.store is False:
        raise reject("store", "must not be false with background: true")
    if len(body.metadata or {}) > METADATA_MAX:
        raise reject("metadata", f"has more than {METADATA_MAX} members")
    if not body.input:
        raise reject("input", "is empty")


def _read_file_search(body: _RequestMembers) -> tuple[bool, list[str]]:
    """Return whether the documents are searched, and to which ones the search is restricted."""
    searches, documents = False, list[str]()
    for position, tool in enumerate(body.tools or ()):
        if tool.type == "function":
            if tool.name is None:
                raise reject(f"tools[{position}].name", "is required")
            continue
        if tool.type != "file_search":
            raise reject(f"tools[{position}].type", f"{tool.type!r} is not available")
        for name in ("filters", "ranking_options"):
            if getattr(tool, name) is not None:
                raise reject(f"tools[{position}].{name}", "is not supported")
        searches = True
        documents += [id_ for id_ in tool.vector_store_ids or () if id_ != ALL_DOCUMENTS]
    return searches, documents


def _build_messages(
    body: _RequestMembers, members: dict[str, Any], previous: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, *previous, {"role": "user", "content": body.input}]
    return [*messages, *previous, *build_messages(members["input"])]


def _translate_options(body: _RequestMembers) -> dict[str, Any]:
    options: dict[str, Any] = {}
    functions = [tool for tool in body.tools or () if tool.type == "function"]
    if functions:
        options["tools"] = [_translate_function(tool) for tool in functions]
    if body.tool_choice is not None:
        choice = _translate_choice(body.tool_choice)
        if functions:
            options["tool_choice"] = choice
        elif choice not in ("auto", "none") and not body.tools:
            raise reject("tool_choice", "needs tools")
    if body.max_output_tokens is not None:
        options["max_completion_tokens"] = body.max_output_tokens
    if body.reasoning is not None and body.reasoning.effort is not None:
        options["reasoning_effort"] = body.reasoning.effort
    if body.text is not None:
        options |= _translate_text(body.text)
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        options["logprobs"] = True
    return options


def _translate_function(tool: _Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    present = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": present}


def _translate_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = [_translate_choice(tool) for tool in choice.get("tools") or ()]
        allowed = {"mode": choice.get("mode", "auto"), "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    if kind == "file_search":  # the documents are searched anyway
        return "auto"
    raise reject("tool_choice", f"{kind!r} is not available")


def _translate_text(text: _Text) -> dict[str, Any]:
    options: dict[str, Any] = {} if text.verbosity is None else {"verbosity": text.verbosity}
    kind = (text.format or {}).get("type", "text")
    if kind == "json_schema":
        schema = {name: value for name, value in (text.format or {}).items() if name != "type"}
        options["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        options["response_format"] = {"type": kind}
    elif kind != "text":
        raise reject("text.format.type", f"{kind!r} is not available")
    return options


def _rename_param(error: InvalidRequest) -> InvalidRequest:
    """The error of the chat completion request, with the name in the original one."""
    param = error.extra.get("param")
    if not isinstance(param, str):
        return error
    name = param.partition("[")[0].partition(".")[0]
    renamed = _PARAMS.get(name, name)
    _, _, reason = error.detail.partition(": ")
    return reject(renamed, reason or error.detail)
