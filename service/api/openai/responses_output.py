"""The output items of a response and the events that announce them, from chat deltas.

A provider's reasoning is a reasoning item with a summary, its text or refusal a message, and each
tool call an item of its own. An item is open until another kind of delta begins.
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
_TEXT_PARTS = {"output_text": "text", "refusal": "refusal"}


class OutputBuilder:
    """Builds the items of one response. Methods return the events of what they add, in order.

    `read_annotations`: returns the citations of the text so far.
    """

    def __init__(
        self, answer_id: str, read_annotations: Callable[[], list[dict[str, Any]]] = list
    ) -> None:
        self.items: list[dict[str, Any]] = []
        self._answer_id, self._read_annotations = answer_id, read_annotations
        self._open: dict[str, Any] | None = None
        self._calls: dict[int, dict[str, Any]] = {}  # by the index of the provider

    def add_search(self, question: str, results: list[dict[str, Any]] | None) -> list[Event]:
        """Add a search of the documents, which is over. `results`: None if not asked for."""
        item: dict[str, Any] = {
            "type": "file_search_call",
            "id": f"fs_{self._answer_id}",
            "status": "completed",
            "queries": [question],
            "results": results,
        }
        index = len(self.items)
        self.items.append(item)
        states = [
            {
                "type": f"response.file_search_call.{state}",
                "output_index": index,
                "item_id": item["id"],
            }
            for state in ("in_progress", "searching", "completed")
        ]
        begun = item | {"status": "in_progress", "results": None}
        return [
            _create_item_event("added", index, begun),
            *states,
            _create_item_event("done", index, item),
        ]

    def add_delta(self, delta: dict[str, Any], logprobs: Any = None) -> list[Event]:
        """Add a delta, or a whole message, of a chat completion."""
        events: list[Event] = []
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            events += self._add_reasoning(reasoning)
        if text := delta.get("content"):
            events += self._add_text("output_text", _read_text(text), _list_logprobs(logprobs))
        if refusal := delta.get("refusal"):
            events += self._add_text("refusal", refusal, [])
        for position, call in enumerate(delta.get("tool_calls") or ()):
            events += self._add_call(call.get("index", position), call)
        return events

    def finish(self, status: str) -> list[Event]:
        """End the open item. `status`: `completed` or `incomplete`."""
        return self._close(status)

    def _add_reasoning(self, text: str) -> list[Event]:
        events, item = [], self._open
        if item is None or item["type"] != "reasoning":
            events = self._close("completed")
            item = {"type": "reasoning", "id": self._create_id("rs"), "summary": []}
            events += self._begin(item)
            part = {"type": "summary_text", "text": ""}
            item["summary"].append(part)
            events.append(self._place("reasoning_summary_part.added", part={**part}))
        item["summary"][0]["text"] += text
        return [*events, self._place("reasoning_summary_text.delta", delta=text)]

    def _add_text(self, kind: str, text: str, logprobs: list[Any]) -> list[Event]:
        events, item = [], self._open
        if item is None or item["type"] != "message":
            events = self._close("completed")
            item = {
                "type": "message",
                "id": self._create_id("msg"),
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            events += self._begin(item)
        content = item["content"]
        if not content or content[-1]["type"] != kind:
            events += self._end_part()
            part: dict[str, Any] = {"type": kind, _TEXT_PARTS[kind]: ""}
            if kind == "output_text":
                part |= {"annotations": [], "logprobs": []}
            content.append(part)
            events.append(self._place("content_part.added", part=_copy_part(content[-1])))
        content[-1][_TEXT_PARTS[kind]] += text
        added = {"logprobs": logprobs} if kind == "output_text" else {}
        if logprobs:
            content[-1]["logprobs"] += logprobs
        return [*events, self._place(f"{kind}.delta", delta=text, **added)]

    def _add_call(self, index: int, call: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        function = call.get("function") or {}
        item = self._calls.get(index)
        if item is None:
            events = self._close("completed")
            item = self._calls[index] = {
                "type": "function_call",
                "id": self._create_id("fc"),
                "call_id": call.get("id") or self._create_id("call"),
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            events += self._begin(item)
        if arguments := function.get("arguments"):
            item["arguments"] += arguments
            place = self.items.index(item)
            events.append(
                {
                    "type": "response.function_call_arguments.delta",
                    "item_id": item["id"],
                    "output_index": place,
                    "delta": arguments,
                }
            )
        return events

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        lists = ("content", "summary")
        empty_item = {name: [] if name in lists else value for name, value in item.items()}
        self.items.append(item)
        self._open = item
        return [_create_item_event("added", len(self.items) - 1, empty_item)]

    def _close(self, status: str) -> list[Event]:
        item, events = self._open, list[Event]()
        if item is None:
            return events
        if item["type"] == "message":
            events += self._end_part()
        elif item["type"] == "reasoning":
            part = item["summary"][0]
            events.append(self._place("reasoning_summary_text.done", text=part["text"]))
            events.append(self._place("reasoning_summary_part.done", part={**part}))
        else:
            done = {"item_id": item["id"], "name": item["name"], "arguments": item["arguments"]}
            place = {"output_index": self.items.index(item)}
            events.append({"type": "response.function_call_arguments.done", **place, **done})
        if "status" in item:
            item["status"] = status
        events.append(_create_item_event("done", self.items.index(item), item))
        self._open = None
        return events

    def _end_part(self) -> list[Event]:
        """End the last part of the open message."""
        item = self._open
        if item is None or not item["content"]:
            return []
        part, events = item["content"][-1], list[Event]()
        if part["type"] == "output_text":
            part["annotations"] = self._read_annotations()
            for n, annotation in enumerate(part["annotations"]):
                event = self._place("output_text.annotation.added", annotation=annotation)
                events.append(event | {"annotation_index": n})
            events.append(
                self._place("output_text.done", text=part["text"], logprobs=part["logprobs"])
            )
        else:
            events.append(self._place("refusal.done", refusal=part["refusal"]))
        return [*events, self._place("content_part.done", part=_copy_part(part))]

    def _place(self, name: str, **members: Any) -> Event:
        """An event of the open item, or of its last part."""
        item = self._open
        assert item is not None  # noqa: S101 - called while an item is open
        place = {"item_id": item["id"], "output_index": self.items.index(item)}
        if item["type"] == "reasoning":
            place["summary_index"] = 0
        else:
            place["content_index"] = len(item["content"]) - 1
        return {"type": f"response.{name}", **place, **members}

    def _create_id(self, prefix: str) -> str:
        return f"{prefix}_{self._answer_id}_{len(self.items)}"


def _create_item_event(state: str, index: int, item: dict[str, Any]) -> Event:
    return {"type": f"response.output_item.{state}", "output_index": index, "item": {**item}}


def _copy_part(part: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in part.items()}


def _read_text(content: Any) -> str:
    """The text of a message, which some providers send in parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _list_logprobs(logprobs: Any) -> list[dict[str, Any]]:
    if not isinstance(logprobs, dict):
        return []
    return [
        {"bytes": [], "top_logprobs": []} | {k: v for k, v in token.items() if v is not None}
        for token in logprobs.get("content") or ()
    ]
