"""Input items of responses, translated to the messages of a chat completion request."""

from typing import Any

import msgspec

from service.api.openai.rejections import reject

Message = dict[str, Any]
# Items that a chat completion request has no place for.
_OMITTED = frozenset({"reasoning", "file_search_call"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})


class Item(msgspec.Struct):
    """The members of an item that are validated."""

    type: str | None = None
    role: str | None = None


def build_messages(items: list[dict[str, Any]]) -> list[Message]:
    """Translate items. Raises `InvalidRequest` with the place of the one that cannot be."""
    messages: list[Message] = []
    for position, item in enumerate(items):
        place, kind = f"input[{position}]", item.get("type") or "message"
        if kind == "message":
            messages.append(_build_message(item, place))
        elif kind == "function_call":
            _add_call(messages, item, place)
        elif kind == "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _build_parts(output, f"{place}.output")
            call_id = _require_text(item, "call_id", place)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif kind not in _OMITTED:
            raise reject(f"{place}.type", f"{kind!r} is not available")
    return messages


def _build_message(item: dict[str, Any], place: str) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise reject(f"{place}.role", f"must be one of {', '.join(sorted(_ROLES))}")
    content = item.get("content")
    if not isinstance(content, str):
        content = _build_parts(content, f"{place}.content")
        if role == "assistant" or all(part["type"] == "text" for part in content):
            # Many providers accept only a text here.
            content = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    return {"role": role, "content": content}


def _add_call(messages: list[Message], item: dict[str, Any], place: str) -> None:
    """Add a call to the message of the assistant before it; there may be several."""
    function = {name: _require_text(item, name, place) for name in ("name", "arguments")}
    call_id = _require_text(item, "call_id", place)
    call = {"id": call_id, "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _build_parts(parts: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(parts, list):
        raise reject(place, "must be a text or a list of parts")
    return [_build_part(part, f"{place}[{n}]") for n, part in enumerate(parts)]


def _build_part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in {"input_text", "output_text", "text"}:
        return {"type": "text", "text": _require_text(part, "text", place)}
    if kind == "refusal":
        return {"type": "refusal", "refusal": _require_text(part, "refusal", place)}
    if kind == "input_image" and part.get("image_url") is not None:
        url = _require_text(part, "image_url", place)
        detail = {"detail": part["detail"]} if part.get("detail") is not None else {}
        return {"type": "image_url", "image_url": {"url": url} | detail}
    if kind == "input_file" and part.get("file_url") is None:
        names = ("filename", "file_data", "file_id")
        return {"type": "file", "file": {name: part[name] for name in names if part.get(name)}}
    if kind == "input_audio" and part.get("input_audio") is not None:
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise reject(f"{place}.type", f"{kind!r} with these members is not available")


def _require_text(item: dict[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise reject(f"{place}.{name}", "must be a text")
    return value


def list_items(answer_id: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The input of a request as items with ids, in order."""
    input_items = body.get("input") or []
    if isinstance(input_items, str):
        part = {"type": "input_text", "text": input_items}
        input_items = [{"type": "message", "role": "user", "content": [part]}]
    items = []
    for position, item in enumerate(input_items):
        named = {"type": "message", "id": f"in_{answer_id}_{position}", **item}
        if named["type"] == "message":
            named |= {"status": "completed", "content": _list_parts(named)}
        items.append(named)
    return items


def _list_parts(item: dict[str, Any]) -> Any:
    """The content of a message as parts."""
    content = item.get("content")
    if not isinstance(content, str):
        return content
    if item.get("role") == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]
