"""Streams of ended answers, from memory and from the log."""

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
from tests.records import intent, outcome
from tests.sse import text_of
from tests.streams import begin, everything, forget

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


@pytest.mark.parametrize("kept", [True, False])
async def test_an_ended_answer_goes_on_after_every_character(
    serve: Serve, fake: ProviderFake, kept: bool
) -> None:
    """After each position of an ended answer the exact rest follows, from the buffer or from the log row."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", resume_seconds=15 if kept else 0
    )
    url = f"/ai/answers/{(await begin(service))['id']}/events"
    whole = await everything(service, url)
    text, answer_id = text_of(whole), whole[0].json["id"]
    if not kept:
        await forget(service)

    for seq in range(len(text) + 1):
        rest = await everything(service, url, f"{answer_id}.{seq}")
        assert text[:seq] + text_of(rest) == text
        assert rest[-1] == whole[-1]
    for seq in (len(text) + 1, len(text) + 2):
        beyond = await service.client.get(url, headers={"Last-Event-ID": f"{answer_id}.{seq}"})
        assert (beyond.status_code, beyond.content) == (204, b"")
    assert len(fake.calls) == 1


async def test_a_failed_answer_ends_the_same_from_the_log(serve: Serve, fake: ProviderFake) -> None:
    """A reader that was cut before a failure gets the rest of the text and the same code from the row."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    fake.next(Behaviour(cut_after=3))
    url = f"/ai/answers/{(await begin(service))['id']}/events"
    whole = await everything(service, url)
    await forget(service)

    rest = await everything(service, url, whole[1].last_id)

    assert text_of(whole[:2] + rest) == text_of(whole)
    assert (rest[-1].name, rest[-1].json["code"]) == ("failure", "provider_cut")
    assert rest[-1].last_id == whole[-1].last_id


async def test_the_log_is_waited_for(serve: Serve, fake: ProviderFake) -> None:
    """An answer that has just ended, and is in neither memory nor database yet, is found all the same."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", resume_seconds=0)
    plain = (await service.client.post("/ai/test", json=FREE)).json()

    found = await service.client.get(f"/ai/answers/{plain['id']}")

    assert (found.status_code, found.json()) == (200, plain)


@pytest.fixture
def queue(tmp_path: Path) -> JournaledQueue:
    """An empty queue."""
    return JournaledQueue(10, Journal(tmp_path / "journal", None, sync_ms=50, bytes_max=2**26))


async def test_a_key_waits_for_the_rows_of_the_process_before(
    database: Database, queue: JournaledQueue
) -> None:
    """A key is not taken for new while recovery may still bring its row."""
    recovered, begun = asyncio.Event(), intent(idempotency_key="k")
    recall = ReplayLookup(database, queue, recovered.wait)
    lookup = asyncio.create_task(recall.find_by_key(begun.user_id, "k"))
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [outcome(begun)])
    recovered.set()

    result = await lookup
    assert result
    assert result.intent.id == begun.id


async def test_a_key_does_not_wait_for_ever(database: Database, queue: JournaledQueue) -> None:
    """When the rows of the process before do not come, the lookup fails."""
    recall = ReplayLookup(database, queue, asyncio.Event().wait, recovery_seconds=0)
    with pytest.raises(DatabaseUnavailable):
        await recall.find_by_key("local", "k")
