"""Limits of parallel answers: provider calls, waiting answers, and rejections."""

import asyncio
import statistics
import time
from typing import Any

import httpx2
import pytest

from service.core.accounting.audit import audit_log
from service.core.answering.answers import AnswerRequest
from service.core.errors import NotFound
from service.core.providers.routes import EndpointCall
from tests.conftest import Serve, http_client
from tests.fakes.provider import Behaviour, Ending, ProviderFake, default_text
from tests.problems import is_problem
from tests.streams import wait_evicted

CALLS, ANSWERS = 10, 20
BODY = {"prompt": "Why?", "grounded": False}


async def test_overload_is_rejected_at_once(serve: Serve, fake: ProviderFake) -> None:
    """Of 80 parallel requests with capacity for 20, ten run, ten wait, and 60 are rejected."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", provider_calls_max=CALLS, answers_max=ANSWERS
    )
    held = asyncio.Event()
    fake.default = Behaviour(hold=held)
    limits = httpx2.Limits(max_connections=4 * ANSWERS)
    async with http_client(service.url, timeout=30, limits=limits) as client:
        requests = [
            asyncio.create_task(client.post("/ai/test", json=BODY | {"prompt": f"question {n}"}))
            for n in range(4 * ANSWERS)
        ]
        async with asyncio.timeout(20):
            while sum(request.done() for request in requests) < 3 * ANSWERS:
                await asyncio.sleep(0.01)
        await fake.wait_calls(CALLS)
        times = []
        for _ in range(30):  # rejections on a warm connection while the service is full
            began = time.perf_counter()
            refused = await client.post("/ai/test", json=BODY)
            times.append(time.perf_counter() - began)
            assert (
                is_problem(refused, 503, "overloaded")["retry_after"]
                == int(refused.headers["retry-after"])
                == 1
            )
        assert len(fake.calls) == CALLS
        held.set()
        answers = await asyncio.gather(*requests)
    whole = [answer.json() for answer in answers if answer.status_code == 200]

    assert statistics.median(times) < 0.1
    assert sorted(answer.status_code for answer in answers) == [200] * ANSWERS + [503] * 3 * ANSWERS
    assert len(fake.calls) == ANSWERS
    texts = {call.prompt: call.text for call in fake.calls}
    assert all(answer["response"] == texts[answer["prompt"]] for answer in whole)
    assert service.services.answers.statistics().in_progress == 0


async def test_an_answer_stopped_while_waiting_used_nothing(
    serve: Serve, fake: ProviderFake
) -> None:
    """An answer stopped while it waits for a call slot costs and holds nothing."""
    service = await serve(openai_base_url=fake.base_url, model="m", provider_calls_max=1)
    held = asyncio.Event()
    fake.next(Behaviour(hold=held))
    first = asyncio.create_task(service.client.post("/ai/test", json=BODY))
    await fake.wait_calls(1)
    waiting = (await service.client.post("/ai/answers", json=BODY)).json()
    assert (await service.client.delete(f"/ai/answers/{waiting['id']}")).status_code == 204
    held.set()
    assert (await first).status_code == 200
    assert (await service.client.post("/ai/test", json=BODY)).status_code == 200
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


async def test_a_timeout_before_the_first_call_used_nothing(
    serve: Serve, fake: ProviderFake
) -> None:
    """An answer that times out while it waits for a call slot used nothing."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", provider_calls_max=1, answer_seconds_max=0.2
    )
    route = service.services.routes.find_chat_route("m")
    async with EndpointCall(route.targets[0].endpoint, "local"):
        is_problem(await service.client.post("/ai/test", json=BODY), 504, "provider_timeout")
    row = await service.row()

    assert (row["status"], row["usage_source"], row["attempts"]) == ("timeout", "none", 0)
    assert row["estimated_cost"] == "0"
    assert fake.calls == []
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).details == []


FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


async def test_answers_beyond_the_limit_are_rejected(serve: Serve, fake: ProviderFake) -> None:
    """At answers_max the next request is rejected with Retry-After, without a provider call."""
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


async def test_answers_of_other_users_are_hidden(serve: Serve, fake: ProviderFake) -> None:
    """Only its user and admins can find or stop an answer, running, ended or logged."""
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
    await wait_evicted(service)
    await service.wait_idle()
    await is_hidden()
    assert (await answers.find_stream(stream.intent.id, "a")).text == default_text("Mine?")
    assert fake.calls[0].ended is Ending.FINISHED
