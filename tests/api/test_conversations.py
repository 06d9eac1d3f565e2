"""Conversations over HTTP: messages, stored threads, and their erasure."""

import asyncio
from typing import Any

import pytest

from service.core.records import Message
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.problems import is_problem
from tests.sse import collect
from tests.streams import FREE, read_all_events, start_answer

MESSAGES = [
    {"role": "user", "content": "How many days do I have to return a product?"},
    {"role": "assistant", "content": "Within 30 days. [1]"},
    {"role": "user", "content": "And tea?"},
]


async def ask(service: Service, **body: Any) -> dict[str, Any]:
    """Ask, and return the answer object."""
    response = await service.client.post("/ai/test", json=FREE | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("route", ["/ai/test", "/ai/stream", "/ai/answers"])
async def test_messages_are_given_to_the_model(
    serve: Serve, fake: ProviderFake, route: str
) -> None:
    """The model gets the earlier messages without citations; the last one is the prompt."""
    service = await serve(openai_base_url=fake.base_url, model="m")

    response = await service.client.post(route, json={"messages": MESSAGES, "grounded": False})
    assert response.status_code in {200, 202}
    row = await service.row()

    sent = [message for message in fake.calls[0].body["messages"] if message["role"] != "system"]
    assert sent == [MESSAGES[0], MESSAGES[1] | {"content": "Within 30 days."}, MESSAGES[2]]
    assert row["prompt"] == "And tea?"


async def test_grounded_messages_precede_the_passages(serve: Serve, fake: ProviderFake) -> None:
    """With documents the last message carries the passages, and the history comes before it."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)

    last = MESSAGES[2] | {"content": "Can I return opened tea?"}
    answer = (
        await service.client.post("/ai/test", json={"messages": [*MESSAGES[:2], last]})
    ).json()

    roles = [message["role"] for message in fake.calls[0].body["messages"]]
    assert answer["status"] == "completed"
    assert roles == ["system", "user", "assistant", "user"]
    assert "passage [1]" in fake.calls[0].body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        (("How many days do I have to return a product?", "What about opened tea?"), "Opened tea"),
        (("返品は何日以内にできますか？", "開封済みの場合は？"), "開封した茶葉は"),
        (("When do guided tours start?", "How long are they?"), "one hour"),
    ],
)
@pytest.mark.parametrize("stored", [True, False])
async def test_follow_up_questions_are_answered_from_the_thread(
    serve: Serve, questions: tuple[str, str], expected: str, stored: bool
) -> None:
    """The built-in model answers questions that refer to the one before, in both languages."""
    service = await serve(seeded=True)
    first = (await service.client.post("/ai/test", json={"prompt": questions[0]})).json()
    history = [
        {"role": "user", "content": questions[0]},
        {"role": "assistant", "content": first["response"]},
    ]
    body = (
        {"prompt": questions[1], "conversation_id": first["conversation_id"]}
        if stored
        else {"messages": [*history, {"role": "user", "content": questions[1]}]}
    )
    answer = (await service.client.post("/ai/test", json=body)).json()
    off_topic = body | (
        {"prompt": "What about nginx?"}
        if stored
        else {"messages": [*history, {"role": "user", "content": "What about nginx?"}]}
    )
    refused = (await service.client.post("/ai/test", json=off_topic)).json()

    assert answer["status"] == "completed"
    assert expected in answer["response"]
    assert refused["status"] == "no_context"
    assert "nginx" in refused["response"]


async def test_rows_store_messages_and_lists_omit_them(service: Service) -> None:
    """The row has `messages` if there are more than the prompt; lists and exports omit them."""
    answer = (await service.client.post("/ai/test", json=FREE_MESSAGES)).json()
    single = await ask(service, prompt="Why?")
    rows = await service.rows()
    export = (await service.client.get("/ai/logs", headers={"Accept": "text/csv"})).text
    row = (await service.client.get(f"/ai/logs/{answer['id']}")).json()

    assert answer["messages"] == row["messages"] == MESSAGES
    assert "messages" not in single
    assert not any("messages" in row for row in rows)
    assert "messages" not in export.splitlines()[0]
    assert "conversation_id" in export.splitlines()[0]


FREE_MESSAGES: dict[str, Any] = {"messages": MESSAGES, "grounded": False}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": MESSAGES},
        {"messages": []},
        {"messages": MESSAGES[:2]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a", "name": "b"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": MESSAGES, "conversation_id": "c"},
        {"conversation_id": "c"},
        {"prompt": "a", "conversation_id": "c" * 37},
        {"messages": MESSAGES[2:] * 201},
    ],
)
async def test_invalid_conversations_are_rejected(service: Service, body: dict[str, Any]) -> None:
    """Exactly one of prompt and messages is required; the last message is the user's."""
    is_problem(await service.client.post("/ai/test", json=body), 422, "invalid_request")


async def test_messages_have_the_limit_of_a_prompt(serve: Serve) -> None:
    """All messages together may have as many characters as a prompt."""
    service = await serve(prompt_characters_max=100)
    turn = {"role": "user", "content": "x" * 50}

    assert (
        await service.client.post("/ai/test", json={"messages": [turn, turn]})
    ).status_code == 200
    is_problem(
        await service.client.post("/ai/test", json={"messages": [turn, turn, turn]}),
        413,
        "too_large",
    )


async def test_a_message_alone_is_a_prompt(service: Service) -> None:
    """One message is the same request as its text as `prompt`, also for idempotency."""
    headers = {"Idempotency-Key": "k"}
    prompt = MESSAGES[0]["content"]
    first = await service.client.post("/ai/test", json=FREE | {"prompt": prompt}, headers=headers)
    again = await service.client.post(
        "/ai/test", json={"messages": MESSAGES[:1], "grounded": False}, headers=headers
    )

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"


async def test_the_idempotency_hash_covers_conversations(service: Service) -> None:
    """The same prompt after other messages, or in a conversation, is another request."""
    headers = {"Idempotency-Key": "k"}
    first = await service.client.post("/ai/test", json=FREE_MESSAGES, headers=headers)
    again = await service.client.post("/ai/test", json=FREE_MESSAGES, headers=headers)
    prompt = MESSAGES[2]["content"]

    assert again.json() == first.json()
    for other in (
        {"prompt": prompt},
        {"messages": MESSAGES[1:]},
        {"prompt": prompt, "conversation_id": first.json()["id"]},
    ):
        body = {"grounded": False} | other
        is_problem(
            await service.client.post("/ai/test", json=body, headers=headers),
            409,
            "idempotency_conflict",
        )


async def test_a_conversation_is_continued_by_its_id(serve: Serve, fake: ProviderFake) -> None:
    """Each answer has the id of its conversation; the model gets the stored turns."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    first = await ask(service, prompt="One?")
    second = await ask(service, prompt="Two?", conversation_id=first["conversation_id"])
    started = await start_answer(service, prompt="Three?", conversation_id=first["id"])
    events = await read_all_events(service, started["events_url"])

    ids = {item["conversation_id"] for item in (first, second, started, events[0].json)}
    assert ids == {first["id"]}
    assert events[-1].json["conversation_id"] == first["id"]
    contents = [message["content"] for message in fake.calls[2].body["messages"][1:]]
    assert contents == ["One?", first["response"], "Two?", second["response"], "Three?"]
    thread = (await service.client.get(f"/ai/conversations/{first['id']}")).json()
    assert [item["prompt"] for item in thread["items"]] == ["One?", "Two?", "Three?"]
    (item,) = (await service.client.get("/ai/conversations")).json()["items"]
    assert (item["id"], item["title"], item["answers"]) == (first["id"], "One?", 3)


async def test_messages_begin_a_conversation_that_can_be_continued(
    serve: Serve, fake: ProviderFake
) -> None:
    """The history of a continued conversation includes the messages that began it."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    first = (await service.client.post("/ai/test", json=FREE_MESSAGES)).json()
    await ask(service, prompt="More?", conversation_id=first["conversation_id"])

    contents = [message["content"] for message in fake.calls[1].body["messages"][1:]]
    assert contents[0] == MESSAGES[0]["content"]
    assert contents[2:] == ["And tea?", first["response"], "More?"]


async def test_threads_are_read_in_pages(service: Service) -> None:
    """`limit` and `cursor` page conversations and their answers."""
    first = await ask(service, prompt="0?")
    for n in (1, 2):
        await ask(service, prompt=f"{n}?", conversation_id=first["id"])
    other = await ask(service, prompt="other")
    url = f"/ai/conversations/{first['id']}"

    page = (await service.client.get(url, params={"limit": 2})).json()
    rest = (await service.client.get(url, params={"cursor": page["next_cursor"]})).json()
    newest = (await service.client.get("/ai/conversations", params={"limit": 1})).json()
    oldest = (
        await service.client.get("/ai/conversations", params={"cursor": newest["next_cursor"]})
    ).json()

    assert [item["prompt"] for item in page["items"] + rest["items"]] == ["0?", "1?", "2?"]
    assert rest["next_cursor"] is None
    assert [item["id"] for item in newest["items"] + oldest["items"]] == [other["id"], first["id"]]
    is_problem(await service.client.get(url, params={"cursor": "x"}), 400, "invalid_cursor")


async def test_conversations_of_others_are_not_found(serve: Serve, fake: ProviderFake) -> None:
    """Continuing, reading or erasing a foreign conversation is 404; an admin may read and erase."""
    service = await serve(openai_base_url=fake.base_url, model="m", auth="keys")
    alice, bob = await make_key(service, "alice"), await make_key(service, "bob")
    async with client(service, alice) as hers, client(service, bob) as his:
        first = (await hers.post("/ai/test", json=FREE)).json()
        held = asyncio.Event()
        fake.next(Behaviour(hold=held))
        running = (await hers.post("/ai/answers", json=FREE)).json()
        for name in (first["id"], running["id"], "unknown"):
            url = f"/ai/conversations/{name}"
            body = FREE | {"conversation_id": name}
            is_problem(await his.post("/ai/test", json=body), 404, "not_found")
            is_problem(await his.get(url), 404, "not_found")
            is_problem(await his.delete(url), 404, "not_found")
        held.set()
        params = {"user_id": "alice"}
        assert (await his.get("/ai/conversations", params=params)).json()["items"] == []
        items = (await hers.get("/ai/conversations")).json()["items"]
        assert first["id"] in [item["id"] for item in items]
        assert (await hers.get(f"/ai/conversations/{first['id']}")).status_code == 200


async def test_the_hold_covers_the_history(serve: Serve, fake: ProviderFake) -> None:
    """The quota held for an answer includes the earlier messages."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    alone = await ask(service, prompt="Why?", max_tokens=10)
    history = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y"}]
    messages = [*history, {"role": "user", "content": "Why?"}]
    body = {"messages": messages, "grounded": False, "max_tokens": 10}
    longer = (await service.client.post("/ai/test", json=body)).json()
    await service.wait_idle()
    holds = {}
    for answer in (alone, longer):
        stream = await service.services.answers.find_stream(answer["id"], None)
        holds[answer["id"]] = stream.intent.held_tokens or 0

    assert holds[longer["id"]] >= holds[alone["id"]] + 1000


async def test_event_source_requests_continue_conversations(
    serve: Serve, fake: ProviderFake
) -> None:
    """GET /ai/stream takes `conversation_id` as well."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    first = await ask(service, prompt="One?")
    params = {"prompt": "Two?", "grounded": "false", "conversation_id": first["id"]}
    async with service.client.stream("GET", "/ai/stream", params=params) as response:
        events = await collect(response)

    assert events[0].json["conversation_id"] == first["id"]
    assert len(fake.calls[1].body["messages"]) == 4


async def test_surrogates_in_messages_are_replaced(service: Service) -> None:
    """Text that is not valid Unicode is stored and sent with replacement characters."""
    body = (
        b'{"messages": [{"role": "user", "content": "a\\ud800"}, '
        b'{"role": "user", "content": "b"}], "grounded": false}'
    )
    response = await service.client.post(
        "/ai/test", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 200
    assert Message(**response.json()["messages"][0]).content == "a\ufffd"
