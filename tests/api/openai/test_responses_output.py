"""Output items and their events, from deltas."""

from typing import Any

from service.api.openai.responses_output import OutputBuilder

DELTAS: list[dict[str, Any]] = [
    {"role": "assistant", "reasoning": "Hm"},
    {"content": "Let me "},
    {"content": "see."},
    {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": ""}}]},
    {"refusal": "No."},
]


def test_items_are_those_of_their_events() -> None:
    """Each item is announced, has its deltas, and is done once, with the state that it has."""
    builder = OutputBuilder("x")
    events = [event for delta in DELTAS for event in builder.add_delta(delta)]
    events += builder.finish("completed")

    kinds = [item["type"] for item in builder.items]
    assert kinds == ["reasoning", "message", "function_call", "function_call", "message"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == builder.items
    assert [event["output_index"] for event in done] == list(range(5))
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in builder.items]
    assert len({item["id"] for item in added}) == 5
    assert builder.items[1]["content"][0]["text"] == "Let me see."
    assert builder.items[2]["arguments"] == "{}"
    assert builder.items[4]["content"] == [{"type": "refusal", "refusal": "No."}]
    assert {item.get("status", "completed") for item in builder.items} == {"completed"}


def test_a_whole_message_gives_the_same_items() -> None:
    """What an ended answer contains is added at once."""
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    pieces, whole = OutputBuilder("x"), OutputBuilder("x")
    for delta in DELTAS[:6]:
        pieces.add_delta(delta)
    whole.add_delta({"reasoning": "Hm", "content": "Let me see.", "tool_calls": calls})
    pieces.finish("completed")
    whole.finish("completed")

    assert whole.items == pieces.items


def test_the_open_item_may_end_incomplete() -> None:
    """The item that a limit has cut says so; those before it are complete."""
    builder = OutputBuilder("x")
    builder.add_delta({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]})
    builder.add_delta({"content": "Beca"})
    builder.finish("incomplete")

    assert [item["status"] for item in builder.items] == ["completed", "incomplete"]


def test_log_probabilities_are_collected() -> None:
    """The part has those of all deltas, with the members that the protocol requires."""
    builder = OutputBuilder("x")
    for token in ("a", "b"):
        builder.add_delta({"content": token}, {"content": [{"token": token, "logprob": -1}]})
    builder.finish("completed")

    assert builder.items[0]["content"][0]["logprobs"] == [
        {"token": token, "logprob": -1, "bytes": [], "top_logprobs": []} for token in ("a", "b")
    ]
