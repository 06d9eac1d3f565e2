"""`POST /v1/chat/completions` with the OpenAI SDK and over plain HTTP."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pydantic
import pytest

from service.core.ports import QuotaLimits
from tests.access import SECRET, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.openai_clients import (
    PRICES,
    QUESTION,
    TOOL_STREAM,
    USAGE,
    check_row,
    completion_of,
    delta,
    openai_client,
    read_events,
    stream_of,
)

ASK: dict[str, Any] = {"model": "fake-model", "messages": QUESTION}
STREAM = ASK | {"stream": True}
WITH_USAGE = STREAM | {"stream_options": {"include_usage": True}}
FIELDS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 1,
    "n": 2,
    "stop": ["\n", "END"],
    "seed": 12345678901234567890,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"50256": -100},
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "verbosity": "high",
    "prediction": {"type": "content", "content": "abc"},
    "metadata": {"a": "b"},
    "store": False,
    "user": "u1",
    "safety_identifier": "s1",
    "prompt_cache_key": "p1",
    "service_tier": "flex",
    "modalities": ["text"],
    "max_completion_tokens": 77,
    "unknown_of_2027": {"deep": [1.50, None]},
}
MESSAGES: list[Any] = [
    {"role": "developer", "content": "Be brief.", "name": "dev"},
    {"role": "user", "content": [{"type": "text", "text": "Look"},
                                 {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "user", "content": "Why?", "unknown": 1},
]  # fmt: skip


@pytest.fixture
async def priced(serve: Serve, fake: ProviderFake) -> Service:
    """A service whose model has a price."""
    return await serve(openai_base_url=fake.base_url, model="fake-model", prices=PRICES)


async def test_a_plain_answer_is_passed_on_with_our_id(priced: Service, fake: ProviderFake) -> None:
    """The completion has the provider's content and usage, the answer's id and the cost."""
    async with openai_client(priced) as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK)
        completion = raw.parse()

    row = await priced.row()
    assert completion.id == f"chatcmpl-{row['id']}"
    assert completion._request_id == row["request_id"]
    assert completion.choices[0].message.content == fake.calls[0].text == row["response"]
    assert completion.usage
    assert completion.usage.prompt_tokens_details
    assert completion.usage.prompt_tokens_details.cached_tokens == row["cached_tokens"]
    assert raw.headers["x-kotae-cost"] == row["estimated_cost"]
    assert b'"cost":%s,' % row["estimated_cost"].encode() in raw.content
    check_row(row, fake.calls[0])


async def test_every_field_reaches_the_provider(service: Service, fake: ProviderFake) -> None:
    """Known and unknown members of the body, and all messages, arrive unchanged."""
    body = FIELDS | {"model": "fake-model", "messages": MESSAGES}

    response = await service.client.post("/v1/chat/completions", json=body)

    assert response.status_code == 200
    assert fake.calls[0].body == body


async def test_a_stream_has_the_role_once_and_no_usage(priced: Service, fake: ProviderFake) -> None:
    """Without include_usage no chunk has usage or empty choices; the end is `[DONE]`."""
    *events, done = (await read_events(priced, STREAM))[0]

    assert done == "data: [DONE]"
    assert [event["choices"][0]["delta"].get("role") for event in events] == [
        "assistant", *[None] * (len(events) - 1)
    ]  # fmt: skip
    assert all("usage" not in event for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({event["id"] for event in events}) == 1
    check_row(await priced.row(), fake.calls[0])


async def test_usage_is_sent_once_at_the_end(priced: Service, fake: ProviderFake) -> None:
    """With include_usage it is null on every chunk, and one last chunk has no choices."""
    fake.next(Behaviour(usage_place="every"))

    *events, usage, _ = (await read_events(priced, WITH_USAGE))[0]

    assert all(event["usage"] is None and event["choices"] for event in events)
    assert usage["choices"] == []
    assert len({(event["id"], event["created"], event["model"]) for event in (*events, usage)}) == 1
    row = await priced.row()
    assert usage["usage"]["total_tokens"] == row["total_tokens"]
    assert Decimal(str(usage["usage"]["cost"])) == Decimal(row["estimated_cost"])
    assert usage["usage"]["source"] == "provider"
    check_row(row, fake.calls[0])


async def test_stream_options_reach_the_provider(service: Service, fake: ProviderFake) -> None:
    """Other stream options are passed on, and usage is always requested."""
    body = STREAM | {"stream_options": {"include_usage": False, "include_obfuscation": False}}

    await read_events(service, body)

    assert fake.calls[0].body["stream_options"] == {
        "include_usage": True,
        "include_obfuscation": False,
    }


async def test_missing_roles_and_repeated_ones_are_repaired(
    service: Service, fake: ProviderFake
) -> None:
    """The first delta of each choice has the role, and no other."""
    fake.next(
        stream_of(
            delta({"content": "a"}),
            delta({"role": "assistant", "content": "b"}, index=1),
            delta({"role": "assistant", "content": "c"}),
            delta({"content": "d"}, "stop"),
            delta({}, "stop", index=1),
        )
    )

    *events, _ = (await read_events(service, STREAM | {"n": 2}))[0]

    assert [event["choices"][0]["delta"] for event in events] == [
        {"content": "a", "role": "assistant"},
        {"content": "b", "role": "assistant"},
        {"content": "c"},
        {"content": "d"},
        {},
    ]


async def test_tool_calls_stream_through_the_helper(priced: Service, fake: ProviderFake) -> None:
    """The SDK assembles the tool call, and the row has it as well as the exact usage."""
    fake.next(stream_of(*TOOL_STREAM))
    async with openai_client(priced) as client, client.chat.completions.stream(**ASK) as stream:
        completion = await stream.get_final_completion()

    calls = completion.choices[0].message.tool_calls
    assert calls
    assert (calls[0].function.name, calls[0].function.arguments) == (
        "get_weather", '{"city": "Paris"}'
    )  # fmt: skip
    (row,) = await priced.rows()
    detail = (await priced.client.get(f"/ai/logs/{row['id']}")).json()
    (choice,) = detail["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "get_weather", "arguments": '{"city": "Paris"}'
    }  # fmt: skip
    assert (row["response"], row["total_tokens"]) == ("", USAGE["total_tokens"])
    assert "choices" not in row


async def test_several_choices_reach_the_client_and_the_row(
    priced: Service, fake: ProviderFake
) -> None:
    """All choices are passed on; the response of the row is the first one."""
    fake.next(completion_of({"content": "one"}, {"content": "two", "refusal": None}))
    async with openai_client(priced) as client:
        completion = await client.chat.completions.create(n=2, **ASK)

    assert [choice.message.content for choice in completion.choices] == ["one", "two"]
    row = await priced.row()
    detail = (await priced.client.get(f"/ai/logs/{row['id']}")).json()
    assert row["response"] == "one"
    assert [choice["message"]["content"] for choice in detail["choices"]] == ["one", "two"]


async def test_reasoning_logprobs_and_refusals_are_passed_on(
    service: Service, fake: ProviderFake
) -> None:
    """What is not plain text arrives unchanged."""
    chunk = delta({"role": "assistant", "reasoning_content": "hm", "refusal": "No."})
    chunk["choices"][0]["logprobs"] = {"content": [{"token": "N", "logprob": -0.5}]}
    chunk["system_fingerprint"] = "fp_1"
    fake.next(stream_of(chunk, delta({}, "content_filter")))

    events, _ = await read_events(service, STREAM)

    assert events[0]["choices"] == chunk["choices"]
    assert events[0]["system_fingerprint"] == "fp_1"


async def test_parse_returns_an_object(service: Service, fake: ProviderFake) -> None:
    """Structured outputs work through the SDK's helper."""

    class City(pydantic.BaseModel):
        name: str

    fake.next(completion_of({"content": '{"name": "Paris"}'}))
    async with openai_client(service) as client:
        completion = await client.chat.completions.parse(response_format=City, **ASK)

    assert completion.choices[0].message.parsed == City(name="Paris")
    assert fake.calls[0].body["response_format"]["json_schema"]["name"] == "City"


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_provider_keep_their_code(
    service: Service, fake: ProviderFake, *, stream: bool
) -> None:
    """A 400 arrives as a 400 with code, param and message, also before the first chunk."""
    reported = {
        "message": "Too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    fake.next(Behaviour(status=400, error=reported))
    async with openai_client(service) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**ASK, stream=stream)

    assert caught.value.body == reported
    assert caught.value.response.json()["code"] == "provider_rejected"
    assert (await service.row())["status"] == "provider_error"


async def test_a_stream_that_breaks_reports_its_usage(priced: Service, fake: ProviderFake) -> None:
    """The error event makes the SDK raise, and has the usage of the row."""
    fake.next(Behaviour(cut_after=3))

    *_, event = (await read_events(priced, STREAM))[0]

    row = await priced.row()
    assert event["error"]["code"] == event["code"] == row["error_code"] == "provider_cut"
    assert (row["usage_source"], event["usage"]["source"]) == ("estimated", "estimated")
    assert event["usage"]["total_tokens"] == row["total_tokens"]
    assert Decimal(str(event["usage"]["cost"])) == Decimal(row["estimated_cost"])
    fake.next(Behaviour(cut_after=3))
    async with openai_client(priced) as client:
        stream = await client.chat.completions.create(**STREAM)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_generated_tool_calls_of_a_broken_stream_are_estimated(
    priced: Service, fake: ProviderFake
) -> None:
    """Usage is not unknown only because there is no text."""
    fake.next(stream_of(*TOOL_STREAM[:3], done=False))

    events, _ = await read_events(priced, STREAM)

    row = await priced.row()
    assert "error" in events[-1]
    assert row["usage_source"] == "estimated"
    assert row["completion_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_cancels_the_provider(
    priced: Service, fake: ProviderFake, *, stream: bool
) -> None:
    """Without announced retries the call is closed at once, and the row says so."""
    fake.next(Behaviour(hang_after=2))
    task = asyncio.create_task(
        priced.client.post("/v1/chat/completions", json=ASK | {"stream": stream})
    )
    (call,) = await fake.wait_calls(1)
    await fake.wait(lambda: call.chunks >= 1 or call.body_bytes > 0)

    task.cancel()

    assert await fake.wait_ended(call) is Ending.ABORTED
    assert (await priced.row())["status"] == "client_gone"


async def test_announced_retries_let_an_answer_continue(serve: Serve, fake: ProviderFake) -> None:
    """A client that sends x-stainless-retry-count may come back: the answer goes on."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", retry_seconds=60)
    hold = asyncio.Event()
    fake.next(Behaviour(holds={2: hold}))
    async with openai_client(service) as client:
        stream = await client.chat.completions.create(**STREAM)
        await anext(aiter(stream))
        await stream.close()
    hold.set()

    assert await fake.wait_ended(fake.calls[0]) is Ending.FINISHED
    assert (await service.row())["status"] == "completed"


async def test_a_stopped_stream_ends_as_a_complete_one(
    service: Service, fake: ProviderFake
) -> None:
    """`DELETE` of the answer ends the stream with a finish reason."""
    fake.next(Behaviour(hang_after=2))
    async with openai_client(service) as client:
        stream = await client.chat.completions.create(**STREAM)
        chunks = [await anext(aiter(stream))]
        answer_id = chunks[0].id.removeprefix("chatcmpl-")
        await service.client.delete(f"/ai/answers/{answer_id}")
        chunks += [chunk async for chunk in stream]

    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (await service.row())["status"] == "stopped"


async def test_without_a_limit_the_remaining_quota_is_the_cap(
    serve: Serve, fake: ProviderFake
) -> None:
    """The cap is sent to the provider and reported; the hold fits the quota exactly."""
    service = await serve(
        auth="keys", secret=SECRET, openai_base_url=fake.base_url, model="fake-model"
    )
    key = await make_key(service, "alice", limits=QuotaLimits(tokens_per_day=1_000))
    async with openai_client(service, str(key.key)) as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK)

    cap = int(raw.headers["x-kotae-max-tokens"])
    assert 800 < cap < 1_000
    assert fake.calls[0].body["max_tokens"] == cap


async def test_without_quotas_the_cap_is_the_setting(service: Service, fake: ProviderFake) -> None:
    """KOTAE_MAX_TOKENS_MAX is requested; a limit of the client replaces it."""
    async with openai_client(service) as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK)
        limited = await client.chat.completions.with_raw_response.create(**ASK, max_tokens=5)

    setting = service.services.settings.max_tokens_max
    assert raw.headers["x-kotae-max-tokens"] == str(setting)
    assert [call.body["max_tokens"] for call in fake.calls] == [setting, 5]
    assert "x-kotae-max-tokens" not in limited.headers


async def test_rate_limits_and_quotas_are_told_apart(serve: Serve, fake: ProviderFake) -> None:
    """A rate limit may be retried, an exhausted quota not; both have headers."""
    service = await serve(
        auth="keys", secret=SECRET, openai_base_url=fake.base_url, model="fake-model"
    )
    minute = await make_key(service, "a", limits=QuotaLimits(requests_per_minute=1))
    day = await make_key(service, "b", limits=QuotaLimits(tokens_per_day=120))
    errors = []
    for key in (minute, day):
        async with openai_client(service, str(key.key)) as client:
            for _ in range(8):
                try:
                    raw = await client.chat.completions.with_raw_response.create(**ASK)
                except openai.RateLimitError as error:
                    errors.append(error)
                    break

    assert [error.code for error in errors] == ["rate_limit_exceeded", "insufficient_quota"]
    assert [error.response.headers["x-should-retry"] for error in errors] == ["true", "false"]
    assert raw.headers["ratelimit"]
    assert errors[0].response.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(errors[0].response.headers["retry-after-ms"]) > 0


async def test_a_wrong_key_is_reported_as_such(serve: Serve) -> None:
    """The SDK raises its exception with OpenAI's code."""
    service = await serve(auth="keys", secret=SECRET)
    async with openai_client(service, "kt_wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**ASK)

    assert caught.value.code == "invalid_api_key"


async def test_the_key_of_a_user_is_charged(serve: Serve, fake: ProviderFake) -> None:
    """The Bearer key identifies the user of the row."""
    service = await serve(
        auth="keys", secret=SECRET, openai_base_url=fake.base_url, model="fake-model"
    )
    key = await make_key(service, "alice")
    async with openai_client(service, str(key.key)) as client:
        await client.chat.completions.create(**ASK, user="someone-else")

    row = await service.row()
    assert (row["user_id"], row["key_id"]) == ("alice", key.id)


async def test_a_provider_that_refuses_our_key_is_not_the_callers_fault(
    service: Service, fake: ProviderFake
) -> None:
    """Its 401 is a 502 without its message, and is not retried."""
    fake.next(Behaviour(status=401, error={"message": "Incorrect API key provided: sk-test"}))

    response = await service.client.post("/v1/chat/completions", json=ASK)

    assert response.status_code == 502
    assert response.json()["error"]["code"] == "provider_refused"
    assert "sk-test" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_idempotency_key_replays_the_tool_calls(
    service: Service, fake: ProviderFake, *, stream: bool
) -> None:
    """The provider is called once; the replay from the log has the same message."""
    message = {
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    fake.next(
        stream_of(*TOOL_STREAM) if stream else completion_of(message, finish_reason="tool_calls")
    )
    options: Any = {"extra_headers": {"Idempotency-Key": "k1"}}
    messages = []
    async with openai_client(service) as client:
        for _ in range(2):
            if stream:
                async with client.chat.completions.stream(**ASK, **options) as events:
                    completion: Any = await events.get_final_completion()
            else:
                completion = await client.chat.completions.create(**ASK, **options)
            messages.append(completion.choices[0].message.model_dump(exclude_none=True))
            await service.wait_idle()

    assert messages[0] == messages[1]
    assert messages[0]["tool_calls"]
    assert len(fake.calls) == 1


async def test_a_key_of_another_request_conflicts(service: Service) -> None:
    """The same key with another body is a 409 that the SDK does not retry."""
    headers = {"Idempotency-Key": "k1"}
    await service.client.post("/v1/chat/completions", json=ASK, headers=headers)
    response = await service.client.post(
        "/v1/chat/completions", json=ASK | {"seed": 1}, headers=headers
    )

    assert response.status_code == 409
    assert response.headers["x-should-retry"] == "false"


class TestGrounded:
    """Answers from the documents."""

    QUESTION = "How many days do I have to return a product?"

    @pytest.mark.parametrize(
        "body", [{"model": "kotae/extractive"}, {"model": "extractive", "grounded": True}]
    )
    async def test_sources_are_annotations(self, serve: Serve, body: dict[str, Any]) -> None:
        """They name the document and the position of the marker, also in a stream."""
        service = await serve(seeded=True)
        messages = [{"role": "user", "content": self.QUESTION}]
        body = body | {"messages": messages}
        plain = (await service.client.post("/v1/chat/completions", json=body)).json()
        events, _ = await read_events(service, body | {"stream": True})

        message = plain["choices"][0]["message"]
        (annotation,) = message["annotations"]
        citation = annotation["url_citation"]
        marker = message["content"][citation["start_index"] : citation["end_index"]]
        assert (annotation["type"], marker) == ("url_citation", "[1]")
        document = (await service.client.get(citation["url"])).json()
        assert document["title"] == citation["title"]
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        assert deltas[-1]["annotations"] == message["annotations"]
        assert (await service.rows())[0]["sources"]

    async def test_a_refusal_is_an_ordinary_answer(self, serve: Serve, fake: ProviderFake) -> None:
        """It has no usage, and the provider is not called."""
        service = await serve(seeded=True, openai_base_url=fake.base_url, model="fake-model")
        question = [{"role": "user", "content": "Who led the moon landing in 1969?"}]
        body = {"model": "kotae/fake-model", "messages": question}
        plain = (await service.client.post("/v1/chat/completions", json=body)).json()
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        *events, usage, _ = (await read_events(service, streamed))[0]

        row = (await service.rows())[0]
        (choice,) = plain["choices"]
        assert (choice["finish_reason"], plain["kotae"]) == ("stop", {"status": "no_context"})
        assert choice["message"]["content"] == row["response"]
        assert {plain["usage"][name] for name in USAGE} == {0}
        assert plain["usage"]["cost"] == usage["usage"]["cost"] == 0
        assert (
            "".join(e["choices"][0]["delta"].get("content", "") for e in events)
            == (row["response"])
        )
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert fake.calls == []

    async def test_other_messages_are_kept(self, serve: Serve, fake: ProviderFake) -> None:
        """The rules come first; the question is replaced by the passages and the question."""
        service = await serve(seeded=True, openai_base_url=fake.base_url, model="fake-model")
        image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
        messages = [
            {"role": "system", "content": "Talk like a pirate."},
            {
                "role": "user",
                "name": "ann",
                "content": [{"type": "text", "text": self.QUESTION}, image],
            },
        ]
        body = {"model": "kotae/fake-model", "messages": messages, "seed": 3}
        response = await service.client.post("/v1/chat/completions", json=body)

        assert response.status_code == 200
        rules, system, question = fake.calls[0].body["messages"]
        assert rules["role"] == "system"
        assert "Answer only from the passages" in rules["content"]
        assert system == messages[0]
        assert (question["name"], question["content"][1]) == ("ann", image)
        assert self.QUESTION in question["content"][0]["text"]
        assert "30 days" in question["content"][0]["text"]
        assert fake.calls[0].body["seed"] == 3
        assert fake.calls[0].body["model"] == "fake-model"
        assert "grounded" not in fake.calls[0].body

    async def test_documents_restrict_the_context(self, serve: Serve) -> None:
        """Only the named documents are used."""
        service = await serve(seeded=True)
        uploads = await service.client.post("/ai/upload", json={"title": "x", "text": "Nothing."})
        body = {
            "model": "kotae/extractive",
            "messages": [{"role": "user", "content": self.QUESTION}],
            "documents": [uploads.json()["document_id"]],
        }

        response = await service.client.post("/v1/chat/completions", json=body)

        assert response.json()["kotae"] == {"status": "no_context"}


async def test_the_extractive_model_rejects_what_it_cannot_do(serve: Serve) -> None:
    """Options that would change the form of the answer are named in a 400."""
    service = await serve()
    response = await service.client.post(
        "/v1/chat/completions", json={"model": "extractive", "messages": QUESTION, "n": 2}
    )

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


async def test_a_body_beyond_its_limit_is_rejected(service: Service) -> None:
    """413 before the body is read."""
    limit = service.services.limits.chat_bytes_max
    response = await service.client.post(
        "/v1/chat/completions",
        content=b"{" + b" " * limit + b"}",
        headers={"Content-Type": "application/json"},
    )

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "too_large"


async def test_a_large_body_is_accepted(service: Service, fake: ProviderFake) -> None:
    """A conversation beyond KOTAE_PROMPT_CHARACTERS_MAX reaches the provider."""
    body = ASK | {"messages": [{"role": "user", "content": "x" * 100_000}, *QUESTION]}
    response = await service.client.post("/v1/chat/completions", json=body)

    assert response.status_code == 200
    assert fake.calls[0].body["messages"] == body["messages"]


async def test_lone_surrogates_of_the_provider_stay_escaped(
    service: Service, fake: ProviderFake
) -> None:
    """The client receives valid JSON with the escapes that the provider sent."""
    fake.next(stream_of(delta({"content": "a\ud83d"}), delta({"content": "\ude00"}, "stop")))

    _, response = await read_events(service, STREAM)

    assert "\\ud83d" in response.text
    assert (await service.row())["response"] == "a😀"


async def test_unknown_query_parameters_are_ignored(service: Service) -> None:
    """Azure's clients send api-version."""
    response = await service.client.post("/v1/chat/completions?api-version=1", json=ASK)

    assert response.status_code == 200


async def test_n_is_part_of_the_hold(serve: Serve, fake: ProviderFake) -> None:
    """Several choices hold several times the completion tokens."""
    service = await serve(
        auth="keys", secret=SECRET, openai_base_url=fake.base_url, model="fake-model"
    )
    key = await make_key(service, "alice", limits=QuotaLimits(tokens_per_day=1_000))
    headers = {"Authorization": f"Bearer {key.key}"}
    body = ASK | {"n": 10, "max_tokens": 100}
    response: httpx2.Response = await service.client.post(
        "/v1/chat/completions", json=body, headers=headers
    )

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "beyond_quota"
    assert response.json()["limit"] == "tokens_per_day"
    assert fake.calls == []


FIRST, RETRY = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


class TestRetries:
    """A client's own retry attaches to the running answer: one call, one row, one charge."""

    @pytest.fixture
    async def patient(self, serve: Serve, fake: ProviderFake) -> Service:
        """A service that waits a minute for retries."""
        return await serve(openai_base_url=fake.base_url, model="fake-model", retry_seconds=60)

    async def leave(self, service: Service, fake: ProviderFake, body: Any) -> asyncio.Event:
        """Send a request and disconnect; returns what lets the provider continue."""
        calls, hold = len(fake.calls), asyncio.Event()
        fake.next(Behaviour(holds={2: hold}))
        task = asyncio.create_task(
            service.client.post("/v1/chat/completions", json=body, headers=FIRST)
        )
        call = (await fake.wait_calls(calls + 1))[calls]
        await fake.wait(lambda: call.chunks >= 1 or call.body_bytes > 0)
        (stream,) = [s for s in service.services.answers._registry if s.outcome is None]
        task.cancel()
        async with asyncio.timeout(10):
            while stream.readers:
                await asyncio.sleep(0.001)
        return hold

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_retry_gets_the_running_answer(
        self, patient: Service, fake: ProviderFake, *, stream: bool
    ) -> None:
        """Whole, or streamed from its start."""
        body = ASK | {"stream": stream}
        hold = await self.leave(patient, fake, body)
        retry = asyncio.create_task(
            patient.client.post("/v1/chat/completions", json=body, headers=RETRY)
        )
        hold.set()
        response = await retry

        row = await patient.row()
        assert len(fake.calls) == 1
        assert response.headers["idempotent-replayed"] == "true"
        if stream:
            events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        else:
            text = response.json()["choices"][0]["message"]["content"]
        assert text == row["response"] == fake.calls[0].text
        assert row["status"] == "completed"

    async def test_a_retry_gets_the_ended_answer(
        self, patient: Service, fake: ProviderFake
    ) -> None:
        """The answer has ended before the retry came."""
        (await self.leave(patient, fake, ASK)).set()
        await patient.wait_idle()

        response = await patient.client.post("/v1/chat/completions", json=ASK, headers=RETRY)

        assert response.json()["choices"][0]["message"]["content"] == fake.calls[0].text
        assert len(await patient.rows()) == 1

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (ASK | {"seed": 1}, RETRY),
            (ASK, RETRY | {"x-openwebui-user-id": "u2"}),
            (ASK, FIRST),
            (ASK, {}),
        ],
    )
    async def test_another_request_is_a_question(
        self, patient: Service, fake: ProviderFake, body: Any, headers: dict[str, str]
    ) -> None:
        """Another body, another user, or no retry: the provider is called again."""
        (await self.leave(patient, fake, ASK)).set()
        response = await patient.client.post("/v1/chat/completions", json=body, headers=headers)

        assert "idempotent-replayed" not in response.headers
        assert len(fake.calls) == 2

    async def test_other_principals_do_not_attach(self, serve: Serve, fake: ProviderFake) -> None:
        """The same body with the key of another user is another question."""
        service = await serve(
            auth="keys",
            secret=SECRET,
            openai_base_url=fake.base_url,
            model="fake-model",
            retry_seconds=60,
        )
        (await self.leave(service, fake, ASK)).set()
        key = await make_key(service, "bob")
        response = await service.client.post(
            "/v1/chat/completions",
            json=ASK,
            headers=RETRY | {"Authorization": f"Bearer {key.key}"},
        )

        assert "idempotent-replayed" not in response.headers
        assert len(fake.calls) == 2

    async def test_a_delivered_answer_is_not_repeated(
        self, patient: Service, fake: ProviderFake
    ) -> None:
        """A client that has the answer asks again."""
        for headers in (FIRST, RETRY):
            await patient.client.post("/v1/chat/completions", json=ASK, headers=headers)

        assert len(await patient.rows()) == len(fake.calls) == 2

    async def test_a_billed_failure_is_not_repeated(
        self, patient: Service, fake: ProviderFake
    ) -> None:
        """The retry gets the same failure, without another call."""
        fake.next(Behaviour(cut_after=2))
        answers = [
            await patient.client.post("/v1/chat/completions", json=ASK, headers=headers)
            for headers in (FIRST, RETRY)
        ]

        assert [answer.status_code for answer in answers] == [502, 502]
        assert answers[0].json()["answer_id"] == answers[1].json()["answer_id"]
        assert answers[0].headers["x-should-retry"] == "false"
        assert len(fake.calls) == 1

    async def test_the_sdk_repeats_what_was_not_billed(
        self, patient: Service, fake: ProviderFake
    ) -> None:
        """A 500 with an error body: the second attempt succeeds, and both have rows."""
        fake.next(Behaviour(status=500))
        async with openai_client(patient, max_retries=2) as client:
            completion = await client.chat.completions.create(**ASK)

        assert completion.choices[0].message.content == fake.calls[1].text
        assert len(await patient.rows()) == 2

    @pytest.mark.slow
    async def test_the_sdk_is_charged_once_after_a_timeout(
        self, patient: Service, fake: ProviderFake
    ) -> None:
        """Its first attempt times out, the second one gets the answer of the first."""
        fake.next(Behaviour(headers_delay=1.5))
        async with openai_client(patient, max_retries=5, timeout=1) as client:
            completion = await client.chat.completions.create(**ASK)

        assert completion.choices[0].message.content == fake.calls[0].text
        assert len(await patient.rows()) == len(fake.calls) == 1
