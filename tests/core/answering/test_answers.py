"""How many at once: calls to the provider, answers waiting for their turn, and what is refused."""

import asyncio
import statistics
import time
from typing import Any

import httpx2
import pytest

from service.core.accounting.audit import audit_log
from service.core.answering.answers import AnswerRequest
from service.core.errors import NotFound
from tests.conftest import Serve, http_client
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.problems import is_problem
from tests.streams import forget

CALLS, ANSWERS = 10, 20
ASK = {"prompt": "Why?", "grounded": False}


async def test_four_times_the_capacity(serve: Serve, fake: ProviderFake) -> None:
    """Of 80 at once against room for 20, ten are with the provider, ten wait, 60 are refused at once; the 20 are whole."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", provider_calls_max=CALLS, answers_max=ANSWERS
    )
    held = asyncio.Event()
    fake.default = Behaviour(hold=held)
    limits = httpx2.Limits(max_connections=4 * ANSWERS)
    async with http_client(service.url, timeout=30, limits=limits) as client:
        asked = [
            asyncio.create_task(client.post("/ai/test", json=ASK | {"prompt": f"question {n}"}))
            for n in range(4 * ANSWERS)
        ]
        async with asyncio.timeout(20):
            while sum(one.done() for one in asked) < 3 * ANSWERS:
                await asyncio.sleep(0.01)
        await fake.wait_calls(CALLS)
        times = []
        for _ in range(
            30
        ):  # refused ones, one after the other on a warm connection, while the service is full
            began = time.perf_counter()
            refused = await client.post("/ai/test", json=ASK)
            times.append(time.perf_counter() - began)
            assert (
                is_problem(refused, 503, "overloaded")["retry_after"]
                == int(refused.headers["retry-after"])
                == 1
            )
        assert len(fake.calls) == CALLS
        held.set()
        answers = await asyncio.gather(*asked)
    whole = [answer.json() for answer in answers if answer.status_code == 200]

    assert statistics.median(times) < 0.1
    assert sorted(answer.status_code for answer in answers) == [200] * ANSWERS + [503] * 3 * ANSWERS
    assert len(fake.calls) == ANSWERS
    said = {call.prompt: call.text for call in fake.calls}
    assert all(answer["response"] == said[answer["prompt"]] for answer in whole)
    assert service.services.answers.statistics().in_progress == 0


async def test_who_waits_and_leaves_was_never_called(serve: Serve, fake: ProviderFake) -> None:
    """An answer that ends while it waits for its turn costs nothing, holds nothing, and takes no turn from the next."""
    service = await serve(openai_base_url=fake.base_url, model="m", provider_calls_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held))
    first = asyncio.create_task(service.client.post("/ai/test", json=ASK))
    await fake.wait_calls(1)
    waiting = (await service.client.post("/ai/answers", json=ASK)).json()
    assert (await service.client.delete(f"/ai/answers/{waiting['id']}")).status_code == 204
    held.set()
    assert (await first).status_code == 200
    assert (await service.client.post("/ai/test", json=ASK)).status_code == 200
    await service.wait_idle()
    row = (await service.client.get(f"/ai/logs/{waiting['id']}")).json()

    assert (row["status"], row["usage_source"], row["attempts"], row["estimated_cost"]) == (
        "stopped",
        "none",
        0,
        "0",
    )
    assert len(fake.calls) == 2
    assert service.services.quota.statistics().holds == 0


async def test_a_deadline_that_passes_before_the_first_call(
    serve: Serve, fake: ProviderFake
) -> None:
    """An answer that times out while it waits for its turn used nothing, and the audit agrees."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", provider_calls_max=1, answer_seconds_max=0.2
    )
    async with service.services.answers._turns:
        is_problem(await service.client.post("/ai/test", json=ASK), 504, "provider_timeout")
    row = await service.row()

    assert (row["status"], row["usage_source"], row["attempts"]) == ("timeout", "none", 0)
    assert row["estimated_cost"] == "0"
    assert fake.calls == []
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).told == []


FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


async def test_one_answer_too_many_is_refused(serve: Serve, fake: ProviderFake) -> None:
    """At answers_max the next is told to come back, and the provider does not hear of it."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", answers_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after="request"))
    first = asyncio.create_task(service.client.post("/ai/test", json=FREE))
    await fake.wait_calls(1)

    refused = await service.client.post("/ai/test", json=FREE)
    held.set()

    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
        503,
        "overloaded",
        "1",
    )
    assert (await first).status_code == 200
    assert len(fake.calls) == 1


async def test_nobody_reaches_the_answer_of_another(serve: Serve, fake: ProviderFake) -> None:
    """B finds A's answer neither running nor ended nor in the log, and cannot stop it; A and the admin can."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    answers, held = service.services.answers, asyncio.Event()
    fake.next(Behaviour(hold=held, hold_after=2))
    ask = AnswerRequest(
        prompt="Mine?",
        grounded=False,
        endpoint="/ai/answers",
        user_id="a",
        sees="a",
        request_id="r",
        stream=True,
        attach_seconds=60,
    )
    stream = await answers.answer(ask)

    async def is_hidden() -> None:
        for attempt in (answers.find_stream, answers.stop_answer):
            with pytest.raises(NotFound):
                await attempt(stream.intent.id, "b")

    await is_hidden()
    assert (
        await answers.find_stream(stream.intent.id, "a")
        is await answers.find_stream(stream.intent.id, None)
        is stream
    )
    held.set()
    await stream.wait_finished()
    await is_hidden()
    await forget(service)
    await service.wait_idle()
    await is_hidden()
    assert (await answers.find_stream(stream.intent.id, "a")).text == default_text("Mine?")
    assert fake.calls[0].ended is Ending.FINISHED
