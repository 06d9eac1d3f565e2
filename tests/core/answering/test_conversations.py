"""Conversations of running and ended answers: history, 409 while busy, erasure."""

import asyncio

import pytest

from service.core.answering.answers import AnswerRequest
from service.core.answering.conversations import ERASED_KEPT
from service.core.auth.principals import LOCAL
from service.core.errors import DatabaseUnavailable, Erased
from tests.api.test_conversations import ask
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.problems import is_problem
from tests.rows import away
from tests.streams import FREE, open_events, read_all_events, start_answer, wait_evicted


async def test_a_running_answer_makes_its_conversation_busy(
    serve: Serve, fake: ProviderFake
) -> None:
    """The next question needs the text of the running answer: 409 until it has ended."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    held = asyncio.Event()
    fake.next(Behaviour(hold=held))
    started = await start_answer(service)
    body = FREE | {"conversation_id": started["id"]}

    busy = await service.client.post("/ai/test", json=body)
    held.set()
    await read_all_events(service, started["events_url"])

    assert is_problem(busy, 409, "conversation_busy")["retry_after"] == 1
    assert (await service.client.post("/ai/test", json=body)).status_code == 200


@pytest.mark.parametrize("in_memory", [True, False])
async def test_an_erased_conversation_is_gone(
    serve: Serve, fake: ProviderFake, in_memory: bool
) -> None:
    """After 204 every way to its texts is 410, the account remains, and erasing again is 204."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", resume_seconds=15 if in_memory else 0
    )
    headers = {"Idempotency-Key": "k"}
    started = (await service.client.post("/ai/answers", json=FREE, headers=headers)).json()
    events = await read_all_events(service, started["events_url"])
    later = await ask(service, prompt="Secret?", conversation_id=started["id"])
    kept = await ask(service, prompt="Kept?")
    before = await service.rows()
    if not in_memory:
        await wait_evicted(service)
    url = f"/ai/conversations/{started['id']}"

    assert (await service.client.delete(url)).status_code == 204
    assert (await service.client.delete(url)).status_code == 204

    resumed = {"Last-Event-ID": events[1].last_id}
    for response in (
        await service.client.get(url),
        await service.client.get(f"/ai/answers/{started['id']}"),
        await service.client.get(f"/ai/answers/{later['id']}"),
        await service.client.get(f"/ai/answers/{started['id']}/events"),
        await service.client.get(f"/ai/answers/{started['id']}/events", headers=resumed),
        await service.client.get("/ai/stream", params={"prompt": "x"}, headers=resumed),
        await service.client.post("/ai/answers", json=FREE, headers=headers),
        await service.client.post("/ai/answers", json=FREE | {"prompt": "?"}, headers=headers),
        await service.client.post("/ai/test", json=FREE | {"conversation_id": started["id"]}),
    ):
        is_problem(response, 410, "erased")
    rows = await service.rows()
    assert [row["id"] for row in rows] == [row["id"] for row in before]
    for row, old in zip(rows, before, strict=True):
        erased = row["id"] != kept["id"]
        assert (row["erased_at"] is not None) == erased
        assert (row["prompt"], row["response"]) == (
            ("", "") if erased else (old["prompt"], old["response"])
        )
        numbers = ("total_tokens", "estimated_cost", "status", "created_at", "user_id")
        assert [row[name] for name in numbers] == [old[name] for name in numbers]
    (item,) = (await service.client.get("/ai/conversations")).json()["items"]
    assert item["id"] == kept["id"]


async def test_erasing_a_running_answer_stops_it_first(serve: Serve, fake: ProviderFake) -> None:
    """The provider call is closed, the row is `stopped` without texts, and late usage counts."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    fake.next(Behaviour(deltas=["Secret "] * 50, hold=asyncio.Event(), hold_after=3))
    started = await start_answer(service, prompt="Secret?")
    async with open_events(service, started["events_url"]) as events:
        while "Secret" not in (await anext(events)).data:
            pass
        response = await service.client.delete(f"/ai/conversations/{started['id']}")
        rest = [event async for event in events]

    assert response.status_code == 204
    assert rest[-1].json["status"] == "stopped"
    row = await service.row()
    assert (row["status"], row["prompt"], row["response"]) == ("stopped", "", "")
    assert row["completion_tokens"] > 0
    assert row["erased_at"]
    await fake.wait_idle()
    assert fake.calls[0].ended is Ending.ABORTED
    is_problem(await service.client.get(f"/ai/answers/{started['id']}"), 410, "erased")


async def test_a_question_that_was_admitted_before_the_erasure_is_rejected(
    serve: Serve, fake: ProviderFake
) -> None:
    """A question that reads the history before the erasure and starts after it is 410."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)
    first = await ask(service, prompt="Secret?")
    answers = service.services.answers
    request = AnswerRequest(
        prompt="How much does shipping cost?",
        grounded=True,
        endpoint="/ai/test",
        user_id="local",
        sees=None,
        request_id="r",
        stream=False,
        conversation_id=first["id"],
    )
    # Searches wait for each other: the question has read the history and waits for its search.
    async with answers._search_service._turn(None):
        question = asyncio.create_task(answers.answer(request))
        while not answers._search_service.waiting_searches:
            await asyncio.sleep(0.001)
        await answers.erase_conversation(first["id"], LOCAL)
    with pytest.raises(Erased):
        await question

    assert len(await service.rows()) == 1
    assert len(fake.calls) == 1


async def test_without_the_database_nothing_is_erased(serve: Serve, fake: ProviderFake) -> None:
    """A failed erasure is 503 and can be repeated; the conversation is as before."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    first = await ask(service, prompt="Secret?")
    await service.wait_idle()
    answers = service.services.answers
    with away(service.services.database), pytest.raises(DatabaseUnavailable):
        await answers.erase_conversation(first["id"], LOCAL)

    thread = (await service.client.get(f"/ai/conversations/{first['id']}")).json()
    assert [item["prompt"] for item in thread["items"]] == ["Secret?"]
    assert (await service.client.delete(f"/ai/conversations/{first['id']}")).status_code == 204


async def test_the_list_of_erasures_is_bounded(serve: Serve, fake: ProviderFake) -> None:
    """Only the last erasures are in memory; older ones are known from their rows."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    first = await ask(service, prompt="Secret?")
    conversations = service.services.answers._conversations
    await service.client.delete(f"/ai/conversations/{first['id']}")
    for n in range(ERASED_KEPT):
        conversations._mark_erased(str(n))

    assert len(conversations._erased) == ERASED_KEPT
    body = FREE | {"conversation_id": first["id"]}
    is_problem(await service.client.post("/ai/test", json=body), 410, "erased")
    is_problem(await service.client.get(f"/ai/answers/{first['id']}"), 410, "erased")
