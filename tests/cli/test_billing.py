"""`kotae billing`."""

import json
from datetime import timedelta

import pytest

from service.core.billing.inbox import ReceivedEvent, store_event
from service.core.billing.meter_events import EventState, create_events, record_attempt
from service.core.database.engine import Database
from service.core.encoding import utc_now
from tests.billing import connect, use
from tests.command import command, run


@pytest.fixture(autouse=True)
def _data_dir(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use the database of the test."""
    assert database.file
    monkeypatch.setenv("KOTAE_DATA_DIR", str(database.file.parent))


async def test_customers_are_connected_listed_and_disconnected() -> None:
    """The commands do what the routes do."""
    assert "kotae billing connect" in await command("billing", "customers")
    assert "connected: alice" in await command("billing", "connect", "alice", "cus_1")
    listed = await command("billing", "customers")
    assert listed.split("\n")[1].split()[:2] == ["alice", "cus_1"]
    assert json.loads(await command("billing", "customers", "--json"))["user_id"] == "alice"
    assert "alice" in await command("billing", "status")
    assert "disconnected: alice" in await command("billing", "disconnect", "alice")
    assert (await run("billing", "disconnect", "alice"))[0] == 1


async def test_events_are_listed_and_resolved(database: Database) -> None:
    """An event in review is listed until it is decided."""
    now = utc_now()
    start = (now - timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    assert "nothing to review" in await command("billing", "review")
    await connect(database, at=start)
    await use(database, 1500, start)
    (event,) = await create_events(database, start, now, now)
    await record_attempt(database, event, EventState.REVIEW, now, error="400: no meter")
    assert "400: no meter" in await command("billing", "review")
    status = json.loads(await command("billing", "status", "--json"))
    assert status["review_usd"] == "0.0000015"
    assert "billed" in await command("billing", "resolve", event.id, "--as", "billed")
    (line,) = (await command("billing", "events", "--user", "local", "--json")).splitlines()
    assert json.loads(line)["state"] == "billed"
    assert "no meter events" in await command("billing", "events", "--state", "pending")


async def test_events_of_stripe_are_listed_and_retried(database: Database) -> None:
    """The commands do what the routes do."""
    assert "no events of Stripe" in await command("billing", "inbox")
    await store_event(database, ReceivedEvent("evt_1", "invoice.paid"), utc_now())
    assert "evt_1" in await command("billing", "inbox", "--state", "pending")
    assert "pending: evt_1" in await command("billing", "retry", "evt_1")
    assert json.loads(await command("billing", "inbox", "--json"))["attempts"] == 0
    assert (await run("billing", "retry", "evt_2"))[0] == 1
