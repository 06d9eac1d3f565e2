"""The OpenAI SDK against a service, and bodies that a provider fake sends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai

from service.core.pricing import format_usd
from tests.conftest import Service
from tests.fakes.provider import Behaviour, Call

QUESTION: list[Any] = [{"role": "user", "content": "Why?"}]
PRICES = {"fake-model": {"input": "1", "output": "2"}}
ENVELOPE = {"id": "chatcmpl-fake", "created": 1_700_000_000, "model": "fake-model"}
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@asynccontextmanager
async def openai_client(
    service: Service, key: str = "any", **options: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK's client of a service; without retries unless the test asks for them."""
    http_client = httpx2.AsyncClient(verify=False)
    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1",
        api_key=key,
        http_client=http_client,
        **{"max_retries": 0} | options,
    ) as client:
        yield client


def stream_of(*chunks: dict[str, Any], done: bool = True) -> Behaviour:
    """A stream of these chunks, each without the envelope."""
    events = [
        b"data: " + json.dumps({"object": "chat.completion.chunk"} | ENVELOPE | chunk).encode()
        for chunk in chunks
    ]
    body = b"\n\n".join([*events, b"data: [DONE]" if done else b"", b""])
    return Behaviour(body=body, content_type="text/event-stream")


def delta(content: dict[str, Any], finish_reason: str | None = None, index: int = 0) -> Any:
    """A chunk with one choice."""
    return {"choices": [{"index": index, "delta": content, "finish_reason": finish_reason}]}


def completion_of(*messages: dict[str, Any], finish_reason: str = "stop") -> Behaviour:
    """A completion with these messages as choices."""
    choices = [
        {
            "index": n,
            "message": {"role": "assistant", "refusal": None} | message,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        for n, message in enumerate(messages)
    ]
    body = {"object": "chat.completion"} | ENVELOPE | {"choices": choices, "usage": USAGE}
    return Behaviour(body=json.dumps(body).encode(), content_type="application/json")


TOOL_STREAM = (
    delta({"role": "assistant", "content": None}),
    delta(
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ]
        }
    ),
    delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}),
    delta({"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}),
    delta({}, "tool_calls"),
    {"choices": [], "usage": USAGE},
)


async def read_events(
    service: Service, body: dict[str, Any], **options: Any
) -> tuple[list[Any], httpx2.Response]:
    """Read a stream without the SDK: the decoded events, `[DONE]` as a string."""
    response = await service.client.post("/v1/chat/completions", json=body, **options)
    lines = [line for line in response.text.split("\n\n") if line]
    events = [
        line if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))
        for line in lines
        if not line.startswith(":")
    ]
    return events, response


def price_usage(usage: dict[str, Any]) -> str:
    """The cost of a usage in USD with `PRICES`."""
    return format_usd(usage["prompt_tokens"] * 1_000 + usage["completion_tokens"] * 2_000)


def check_row(row: dict[str, Any], call: Call) -> None:
    """The row has the tokens and the cost that the provider reported."""
    usage = call.usage
    assert (row["prompt_tokens"], row["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert row["usage_source"] == "provider"
    assert row["estimated_cost"] == price_usage(usage)
