"""Follow-up questions rewritten by the model: the search, the account, and failures."""

from typing import Any

import pytest

from service.core.answering.rewriting import ENDPOINT, RULES
from service.core.ports import QuotaLimits
from tests.access import client, make_key
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake

COMPLETE = "How much does standard shipping cost?"
BODY: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Do you send parcels?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "What does that amount to?"},
    ]
}
SETTINGS: dict[str, Any] = {"model": "m", "seeded": True, "rewrite_questions": True}


async def test_the_complete_question_is_searched(serve: Serve, fake: ProviderFake) -> None:
    """The model gets the thread and rewrites the question; the answer's prompt stays as asked."""
    service = await serve(openai_base_url=fake.base_url, **SETTINGS)
    fake.next(Behaviour(text=COMPLETE))

    answer = (await service.client.post("/ai/test", json=BODY)).json()

    first, second = fake.calls
    system, *thread = first.body["messages"]
    assert (system["content"], thread) == (RULES, BODY["messages"])
    assert answer["status"] == "completed"
    assert answer["prompt"] == BODY["messages"][-1]["content"]
    assert "600 yen" in second.body["messages"][-1]["content"]


async def test_the_call_has_a_row_without_texts(serve: Serve, fake: ProviderFake) -> None:
    """The call is charged to the caller like an answer; its row is not in the conversation."""
    service = await serve(openai_base_url=fake.base_url, **SETTINGS)
    fake.next(Behaviour(text=COMPLETE))
    answer = (await service.client.post("/ai/test", json=BODY)).json()

    rows = {row["endpoint"]: row for row in await service.rows()}
    row = rows[ENDPOINT]
    assert len(rows) == 2
    assert (row["prompt"], row["response"], row["conversation_id"]) == ("", "", None)
    assert (row["status"], row["usage_source"], row["attempts"]) == ("completed", "provider", 1)
    assert (row["user_id"], row["request_id"]) == (answer["user_id"], answer["request_id"])
    assert row["total_tokens"] > 0


async def test_a_failed_call_leaves_the_question_as_it_is(serve: Serve, fake: ProviderFake) -> None:
    """Without the rewritten question the search uses the thread; the failure has a row."""
    service = await serve(openai_base_url=fake.base_url, **SETTINGS)
    messages = [
        {"role": "user", "content": COMPLETE},
        {"role": "user", "content": "How long does it take?"},
    ]
    fake.next(Behaviour(status=500))

    answer = (await service.client.post("/ai/test", json={"messages": messages})).json()

    assert answer["status"] == "completed"
    assert "two to three days" in fake.calls[1].body["messages"][-1]["content"]
    rows = {row["endpoint"]: row["status"] for row in await service.rows()}
    assert rows == {ENDPOINT: "provider_error", "/ai/test": "completed"}


async def test_one_concurrent_answer_suffices(serve: Serve, fake: ProviderFake) -> None:
    """The call ends before the answer is held; a spent quota skips the call."""
    service = await serve(openai_base_url=fake.base_url, auth="keys", **SETTINGS)
    key = await make_key(service, "alice", limits=QuotaLimits(concurrent=1, requests_per_minute=3))
    async with client(service, key) as alice:
        fake.next(Behaviour(text=COMPLETE))
        first = await alice.post("/ai/test", json=BODY)
        assert first.status_code == 200
        assert len(fake.calls) == 2
        again = {"messages": [*BODY["messages"][:2], {"role": "user", "content": COMPLETE}]}
        fake.next(Behaviour(text=COMPLETE))
        limited = await alice.post("/ai/test", json=again)

    assert limited.status_code == 429


@pytest.mark.parametrize(
    "body", [{"prompt": COMPLETE}, BODY | {"grounded": False}, BODY | {"model": "extractive"}]
)
async def test_other_questions_are_not_rewritten(
    serve: Serve, fake: ProviderFake, body: dict[str, Any]
) -> None:
    """Only grounded follow-up questions to a language model are rewritten."""
    service = await serve(openai_base_url=fake.base_url, **SETTINGS)
    await service.client.post("/ai/test", json=body)

    assert [row["endpoint"] for row in await service.rows()] == ["/ai/test"]


async def test_greetings_are_not_rewritten(serve: Serve, fake: ProviderFake) -> None:
    """A greeting in a conversation costs nothing."""
    service = await serve(openai_base_url=fake.base_url, **SETTINGS)
    thanks = {"role": "user", "content": "Thanks!"}
    await service.client.post("/ai/test", json={"messages": [*BODY["messages"][:2], thanks]})

    assert fake.calls == []
