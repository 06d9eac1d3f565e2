"""Replays of ended answers, from memory and from the log."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.core.accounting import log as request_log
from service.core.accounting.journal import Journal
from service.core.accounting.queue import JournaledQueue
from service.core.answering.replay import ReplayLookup
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from tests.conftest import Serve
from tests.fakes.provider import Behaviour, ProviderFake
from tests.records import build_intent, build_outcome
from tests.sse import text_of
from tests.streams import read_all_events, start_answer, wait_evicted

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


@pytest.mark.parametrize("in_memory", [True, False])
async def test_an_ended_answer_resumes_at_every_character(
    serve: Serve, fake: ProviderFake, in_memory: bool
) -> None:
    """After each position the exact rest follows, from the buffer or from the log row."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", resume_seconds=15 if in_memory else 0
    )
    url = f"/ai/answers/{(await start_answer(service))['id']}/events"
    whole = await read_all_events(service, url)
    text, answer_id = text_of(whole), whole[0].json["id"]
    if not in_memory:
        await wait_evicted(service)

    for seq in range(len(text) + 1):
        rest = await read_all_events(service, url, f"{answer_id}.{seq}")
        assert text[:seq] + text_of(rest) == text
        assert rest[-1] == whole[-1]
    for seq in (len(text) + 1, len(text) + 2):
        beyond = await service.client.get(url, headers={"Last-Event-ID": f"{answer_id}.{seq}"})
        assert (beyond.status_code, beyond.content) == (204, b"")
    assert len(fake.calls) == 1


async def test_a_failed_answer_is_replayed_from_the_log(serve: Serve, fake: ProviderFake) -> None:
    """A reader cut before a failure gets the rest of the text and the code from the row."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    fake.next(Behaviour(cut_after=3))
    url = f"/ai/answers/{(await start_answer(service))['id']}/events"
    whole = await read_all_events(service, url)
    await wait_evicted(service)

    rest = await read_all_events(service, url, whole[1].last_id)

    assert text_of(whole[:2] + rest) == text_of(whole)
    assert (rest[-1].name, rest[-1].json["code"]) == ("failure", "provider_cut")
    assert rest[-1].last_id == whole[-1].last_id


async def test_a_lookup_waits_for_the_commit(serve: Serve, fake: ProviderFake) -> None:
    """An answer that just ended, whose row is not committed yet, is found."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    plain = (await service.client.post("/ai/test", json=FREE)).json()

    response = await service.client.get(f"/ai/answers/{plain['id']}")

    assert (response.status_code, response.json()) == (200, plain)


@pytest.fixture
def queue(tmp_path: Path) -> JournaledQueue:
    """An empty queue."""
    return JournaledQueue(10, Journal(tmp_path / "journal", None, sync_ms=50, bytes_max=2**26))


async def test_a_lookup_waits_for_recovery(database: Database, queue: JournaledQueue) -> None:
    """A key is not considered new while recovery may still write its row."""
    recovered, intent = asyncio.Event(), build_intent(idempotency_key="k")
    lookup = ReplayLookup(database, queue, recovered.wait)
    search = asyncio.create_task(lookup.find_by_key(intent.user_id, "k"))
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [build_outcome(intent)])
    recovered.set()

    result = await search
    assert result
    assert result.intent.id == intent.id


async def test_a_lookup_fails_if_recovery_hangs(database: Database, queue: JournaledQueue) -> None:
    """A lookup fails if recovery takes too long."""
    lookup = ReplayLookup(database, queue, asyncio.Event().wait, recovery_seconds=0)
    with pytest.raises(DatabaseUnavailable):
        await lookup.find_by_key("local", "k")
