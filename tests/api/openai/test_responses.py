"""`/v1/responses` with the OpenAI SDK and over plain HTTP."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.access import make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.http_server.raw import RawClient, talk
from tests.openai_clients import (
    PRICES,
    QUESTION,
    TOOL_STREAM,
    USAGE,
    check_row,
    completion_of,
    delta,
    openai_client,
    stream_of,
)

ASK: dict[str, Any] = {"model": "fake-model", "input": "Why?"}
RETURNS = "Within how many days can I return a product?"
SEARCH: Any = {"type": "file_search", "vector_store_ids": ["kotae"]}


@pytest.fixture
async def priced(serve: Serve, fake: ProviderFake) -> Service:
    """A service whose model has a price."""
    return await serve(openai_base_url=fake.base_url, model="fake-model", prices=PRICES)


@pytest.fixture
async def seeded(serve: Serve) -> Service:
    """A service with the sample documents, without a provider."""
    return await serve(seeded=True)


async def read_raw_events(service: Service, path: str, **options: Any) -> list[dict[str, Any]]:
    """The decoded events of a stream, which must end with `[DONE]`."""
    method = "POST" if "json" in options else "GET"
    response = await service.client.request(method, path, **options)
    *blocks, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    events = []
    for block in blocks:
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def test_a_response_has_the_text_usage_and_cost(priced: Service, fake: ProviderFake) -> None:
    """The answer's id with a prefix, the provider's text and usage, the cost of the row."""
    async with openai_client(priced) as client:
        raw = await client.responses.with_raw_response.create(**ASK, instructions="Be brief.")
        response = raw.parse()

    row = await priced.row()
    assert response.id == f"resp_{row['id']}"
    assert response.status == "completed"
    assert response.output_text == fake.calls[0].text == row["response"]
    assert response.usage
    assert response.usage.total_tokens == row["total_tokens"]
    assert raw.headers["x-kotae-cost"] == row["estimated_cost"]
    assert (row["endpoint"], row["prompt"]) == ("/v1/responses", "Why?")
    assert fake.calls[0].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    check_row(row, fake.calls[0])


async def test_a_stream_has_all_events_in_order(priced: Service, fake: ProviderFake) -> None:
    """Created, in progress, the item and its part around the deltas, completed."""
    events = await read_raw_events(priced, "/v1/responses", json=ASK | {"stream": True})

    names = [event["type"].removeprefix("response.") for event in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    text = "".join(event["delta"] for event in events[4:-4])
    response = events[-1]["response"]
    assert text == fake.calls[0].text == response["output"][0]["content"][0]["text"]
    assert events[0]["response"]["status"] == "in_progress"
    assert response["usage"]["total_tokens"] == (await priced.row())["total_tokens"]
    check_row(await priced.row(), fake.calls[0])


async def test_function_calls_are_items(service: Service, fake: ProviderFake) -> None:
    """Tools reach the provider in its form; calls are items, streamed and not; a result returns."""
    tool: Any = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
    fake.next(stream_of(*TOOL_STREAM))
    async with openai_client(service) as client:
        async with client.responses.stream(**ASK, tools=[tool]) as stream:
            names = [event.type async for event in stream]
            response = await stream.get_final_response()
        call: Any = response.output[0]
        await client.responses.create(
            model="fake-model",
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "20 °C"}],
            previous_response_id=response.id,
        )

    assert (call.name, call.call_id, call.arguments) == (
        "get_weather",
        "call_1",
        '{"city": "Paris"}',
    )
    assert names.count("response.function_call_arguments.delta") == 2
    assert names.count("response.function_call_arguments.done") == 1
    function = {"name": "get_weather", "parameters": {"type": "object"}}
    assert fake.calls[0].body["tools"] == [{"type": "function", "function": function}]
    user, assistant, result = fake.calls[1].body["messages"]
    assert user == {"role": "user", "content": "Why?"}
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "20 °C"}


async def test_reasoning_is_a_summary_before_the_text(service: Service, fake: ProviderFake) -> None:
    """The reasoning that a provider sends is an item of its own."""
    fake.next(
        stream_of(
            delta({"role": "assistant", "reasoning_content": "Let me "}),
            delta({"reasoning_content": "think."}),
            delta({"content": "42"}),
            delta({}, "stop"),
            {"choices": [], "usage": USAGE},
        )
    )
    events = await read_raw_events(service, "/v1/responses", json=ASK | {"stream": True})

    reasoning, message = events[-1]["response"]["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Let me think."}]
    assert message["content"][0]["text"] == "42"
    names = [event["type"] for event in events]
    assert names.index("response.reasoning_summary_text.done") < names.index(
        "response.output_text.delta"
    )


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
async def test_a_response_may_be_incomplete(
    service: Service, fake: ProviderFake, finish_reason: str, reason: str
) -> None:
    """A limit or a filter of the provider makes it incomplete, with the reason."""
    fake.next(completion_of({"content": "Beca"}, finish_reason=finish_reason))
    async with openai_client(service) as client:
        response = await client.responses.create(**ASK)

    assert (response.status, response.output_text) == ("incomplete", "Beca")
    assert response.incomplete_details
    assert response.incomplete_details.reason == reason


async def test_a_failure_after_the_first_chunk_is_an_event(
    service: Service, fake: ProviderFake
) -> None:
    """The stream ends with `response.failed`, which has the error and what was received."""
    fake.next(Behaviour(cut_after=3))
    events = await read_raw_events(service, "/v1/responses", json=ASK | {"stream": True})

    response = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert (response["status"], response["error"]["code"]) == ("failed", "provider_cut")
    assert response["output"][0]["status"] == "incomplete"
    assert (await service.row())["status"] == "provider_error"


async def test_the_documents_are_a_tool(seeded: Service) -> None:
    """`file_search` answers from the documents with file citations, and shows what it found."""
    async with openai_client(seeded) as client:
        response = await client.responses.create(
            model="extractive", input=RETURNS, tools=[SEARCH], include=["file_search_call.results"]
        )
        search, message = response.output
        refusal = await client.responses.create(
            model="kotae/extractive", input="Who won the 1998 football world cup?"
        )

    row = (await seeded.rows())[-1]
    assert search.type == "file_search_call"
    assert search.queries == [RETURNS]
    assert search.results
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    (citation,) = part.annotations
    assert citation.type == "file_citation"
    assert citation.file_id == search.results[0].file_id == row["sources"][0]["document_id"]
    assert part.text[citation.index] == "["
    assert refusal.status == "completed"
    assert refusal.usage
    assert refusal.usage.total_tokens == 0
    assert refusal.to_dict()["kotae"] == {"status": "no_context"}


async def test_the_grounded_model_cites_urls(seeded: Service) -> None:
    """Without the tool, citations are those of URLs, in events too."""
    events = await read_raw_events(
        seeded,
        "/v1/responses",
        json={"model": "kotae/extractive", "input": RETURNS, "stream": True},
    )
    part = events[-1]["response"]["output"][0]["content"][0]
    (citation,) = part["annotations"]

    assert citation["type"] == "url_citation"
    assert part["text"][citation["start_index"] : citation["end_index"]] == "[1]"
    assert [event["annotation"] for event in events if "annotation" in event] == [citation]


async def test_a_stored_response_is_retrieved(priced: Service) -> None:
    """With its request's options, from memory and after that from the log; so is its input."""
    async with openai_client(priced) as client:
        created = await client.responses.create(**ASK, metadata={"a": "b"}, temperature=0.5)
        await priced.wait_idle()
        retrieved = await client.responses.retrieve(created.id)
        items = await client.responses.input_items.list(created.id)

    assert retrieved.to_dict() == created.to_dict()
    assert (retrieved.metadata, retrieved.temperature) == ({"a": "b"}, 0.5)
    (item,) = items.data
    assert item.to_dict()["content"] == [{"type": "input_text", "text": "Why?"}]


async def test_a_stream_is_continued_after_each_event(priced: Service) -> None:
    """`starting_after` gives exactly what follows, although the log does not have the deltas."""
    body = ASK | {"stream": True}
    events = await read_raw_events(priced, "/v1/responses", json=body)
    await priced.wait_idle()
    path = f"/v1/responses/{events[-1]['response']['id']}"
    text = events[-1]["response"]["output"][0]["content"][0]["text"]

    for position, event in enumerate(events[:-1]):
        after = event["sequence_number"]
        rest = await read_raw_events(priced, f"{path}?stream=true&starting_after={after}")
        received = "".join(event.get("delta", "") for event in (*events[: position + 1], *rest))
        assert all(event["sequence_number"] > after for event in rest)
        assert received == text
        assert rest[-1]["response"] == events[-1]["response"]


async def test_a_background_response_needs_no_reader(service: Service, fake: ProviderFake) -> None:
    """It is returned at once, runs on without a connection, and can be read afterwards."""
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after="request"))
    async with openai_client(service) as client:
        created = await client.responses.create(**ASK, background=True)
        running = await client.responses.retrieve(created.id)
        release.set()
        await service.wait_idle()
        ended = await client.responses.retrieve(created.id)

    assert (created.status, running.status, ended.status) == (
        "in_progress",
        "in_progress",
        "completed",
    )
    assert ended.output_text == fake.calls[0].text


@pytest.mark.parametrize("lost", [True, False])
async def test_a_retry_gets_a_background_response_that_was_lost(
    service: Service, fake: ProviderFake, *, lost: bool
) -> None:
    """If the client left during the search, its retry gets the id; otherwise it asks again."""
    await service.client.post("/ai/upload", json={"text": "The zebra code is 4711."})
    question = {"model": "kotae/fake-model", "input": "What is the zebra code?"}
    body = json.dumps(question | {"background": True}).encode()
    first, retry = (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nX-Stainless-Retry-Count: %d\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (count, len(body), body)
        for count in (0, 1)
    )
    if lost:
        client = await RawClient.connect(service)
        await client.send(first)
        client.writer.transport.abort()
    else:
        await talk(service, first)
    await fake.wait_calls(1)
    (reply,) = await talk(service, retry)

    rows = await service.rows()
    assert reply.json()["id"] == f"resp_{rows[0]['id']}"
    assert len(rows) == len(fake.calls) == (1 if lost else 2)
    assert {row["status"] for row in rows} == {"completed"}


async def test_a_background_response_is_cancelled(service: Service, fake: ProviderFake) -> None:
    """The provider call ends and the row is `stopped`; other responses cannot be cancelled."""
    async with openai_client(service) as client:
        plain = await client.responses.create(**ASK)
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(plain.id)
        fake.next(Behaviour(hold=asyncio.Event(), hold_after="request"))
        created = await client.responses.create(**ASK, background=True)
        cancelled = await client.responses.cancel(created.id)

    assert cancelled.status == "cancelled"
    assert (await service.rows())[0]["status"] == "stopped"


async def test_a_deleted_response_is_erased(priced: Service) -> None:
    """Its texts are gone for good, also as context; its account stays."""
    async with openai_client(priced) as client:
        created = await client.responses.create(**ASK)
        await client.responses.delete(created.id)
        for request in (
            client.responses.retrieve(created.id),
            client.responses.input_items.list(created.id),
            client.responses.create(**ASK, previous_response_id=created.id),
        ):
            with pytest.raises(openai.APIStatusError) as raised:
                await request
            assert raised.value.status_code == 410

    row = await priced.row()
    assert (row["prompt"], row["response"]) == ("", "")
    assert row["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_texts_are_not_stored_if_the_client_says_so(priced: Service, path: str) -> None:
    """With `store: false` the row has the account only, and nothing can be retrieved."""
    asked = {"input": "Why?"} if path == "/v1/responses" else {"messages": QUESTION}
    body = {"model": "fake-model", "store": False} | asked
    response = (await priced.client.post(path, json=body)).json()
    row = await priced.row()
    found = await priced.client.get(f"/v1/responses/{response['id']}")
    answer = await priced.client.get(f"/ai/answers/{row['id']}")

    assert (row["prompt"], row["response"]) == ("", "")
    assert row["total_tokens"] > 0
    assert found.status_code == answer.status_code == 404


async def test_responses_of_others_do_not_exist(serve: Serve, fake: ProviderFake) -> None:
    """Another user gets 404 for each route, and cannot continue the response."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", auth="keys")
    alice, bob = [(await make_key(service, user)).key or "" for user in ("alice", "bob")]
    async with openai_client(service, alice) as client:
        created = await client.responses.create(**ASK)
    async with openai_client(service, bob) as client:
        for request in (
            client.responses.retrieve(created.id),
            client.responses.input_items.list(created.id),
            client.responses.cancel(created.id),
            client.responses.delete(created.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await request
        with pytest.raises(openai.BadRequestError, match="no response has this id") as raised:
            await client.responses.create(**ASK, previous_response_id=created.id)
    assert raised.value.param == "previous_response_id"
