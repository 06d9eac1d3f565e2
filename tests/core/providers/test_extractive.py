"""The extractive model, called by the real client."""

import json
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from service.core import tokens
from service.core.grounding.extraction import FREE
from service.core.grounding.prompt import build_free_messages, build_grounded_messages
from service.core.providers.extractive import ExtractiveTransport
from service.core.records import Message, Passage
from service.core.settings import EXTRACTIVE
from tests.core.grounding.test_meaning import Similarities

POLICY = Passage(
    1,
    "d1",
    "d1.1",
    "Shop rules",
    "# Refunds\n\nYou can return unopened goods within 30 days. "
    "Refunds take five business days.\n\n## Contact\n\nWrite to help@shop.example.",
)
RULES = Passage(
    2,
    "d2",
    "d2.1",
    "店の決まり",
    "# 返品\n\n未開封の商品は30日以内に返品できます。"
    "送料はお客様の負担です。\n\nよくある質問：返品できますか？",
)


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    """The real client with the extractive model as its transport."""
    async with httpx2.AsyncClient(transport=ExtractiveTransport()) as http_client:
        yield AsyncOpenAI(
            base_url="http://extractive.invalid/v1",
            api_key="none",
            http_client=http_client,
            max_retries=0,
        )


def wire(messages: list[Message]) -> list[ChatCompletionMessageParam]:
    """Messages as parameters of the client."""
    return [
        {"role": "system", "content": message.content}
        if message.role == "system"
        else {"role": "user", "content": message.content}
        for message in messages
    ]


async def complete(
    client: AsyncOpenAI, messages: list[Message], max_tokens: int = 200
) -> ChatCompletion:
    """Request an answer without streaming."""
    return await client.chat.completions.create(
        model=EXTRACTIVE, messages=wire(messages), max_tokens=max_tokens
    )


async def test_a_completion(client: AsyncOpenAI) -> None:
    """The real client reads a completion with citation and counted usage."""
    messages = build_grounded_messages("How long do refunds take?", [POLICY, RULES])
    reply = await complete(client, messages)
    assert reply.choices[0].message.content == "Refunds take five business days. [1]"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage
    usage = await tokens.estimate_usage(
        messages, "Refunds take five business days. [1]", EXTRACTIVE
    )
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    assert reply.usage.total_tokens == usage.total_tokens


@pytest.mark.parametrize("with_usage", [True, False])
async def test_a_stream(client: AsyncOpenAI, with_usage: bool) -> None:
    """A stream has a role, text, a finish reason and, if requested, a usage without choices."""
    messages = build_grounded_messages("返品は何日以内にできますか？", [POLICY, RULES])
    stream = await client.chat.completions.create(
        model=EXTRACTIVE,
        messages=wire(messages),
        stream=True,
        stream_options={"include_usage": with_usage},
    )
    chunks = [chunk async for chunk in stream]
    if with_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage
        assert last.usage.completion_tokens == tokens.count_tokens(
            "未開封の商品は30日以内に返品できます。[2]"
        )
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 4
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        == "未開封の商品は30日以内に返品できます。[2]"
    )


async def test_the_stream_ends_with_done() -> None:
    """A stream consists of events with one object each, followed by [DONE]."""
    async with httpx2.AsyncClient(transport=ExtractiveTransport()) as http_client:
        body = {
            "model": EXTRACTIVE,
            "stream": True,
            "messages": [{"role": "user", "content": "Hello"}],
        }
        response = await http_client.post(
            "http://extractive.invalid/v1/chat/completions", json=body
        )
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    assert all(
        json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"
        for event in events
    )


@pytest.mark.parametrize("most", [1, 5])
async def test_max_tokens(client: AsyncOpenAI, most: int) -> None:
    """An answer is truncated to max_tokens, with the finish reason `length`."""
    reply = await complete(
        client, build_grounded_messages("How long do refunds take?", [POLICY]), most
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage
    assert reply.usage.completion_tokens == most
    assert "Refunds take five business days. [1]".startswith(
        reply.choices[0].message.content or "?"
    )


@pytest.mark.parametrize(
    ("question", "language"),
    [("Hello, who are you?", "en"), ("こんにちは。あなたは誰ですか？", "ja")],
)
async def test_without_context(client: AsyncOpenAI, question: str, language: str) -> None:
    """Without context the model explains its limits in the language of the question."""
    assert (await complete(client, build_free_messages(question))).choices[
        0
    ].message.content == FREE[language]


async def test_errors_are_those_of_a_server(client: AsyncOpenAI) -> None:
    """A wrong path or body is an error response of the protocol."""
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model=EXTRACTIVE, input="x", encoding_format="float")
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", body={"messages": "none"}, cast_to=httpx2.Response)
    assert [model.id async for model in client.models.list()] == [EXTRACTIVE]


async def test_an_answer_by_meaning() -> None:
    """A Japanese question about an English passage quotes the nearest sentence."""
    async with httpx2.AsyncClient(
        transport=ExtractiveTransport(vectors=Similarities(unopened=0.9))
    ) as http_client:
        client = AsyncOpenAI(
            base_url="http://extractive.invalid/v1",
            api_key="none",
            http_client=http_client,
            max_retries=0,
        )
        reply = await complete(client, build_grounded_messages("返品の期限は？", [POLICY]))
        content = reply.choices[0].message.content
        assert content is not None
        assert content.startswith("You can return unopened goods within 30 days. [1]")
        free = await complete(client, build_free_messages("返品の期限は？"))
        assert free.choices[0].message.content == FREE["ja"]
