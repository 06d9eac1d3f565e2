"""Meter events of a service that is killed: each is billed once, and none is lost."""

import asyncio
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.core.database.engine import Database
from service.core.encoding import utc_now
from tests.billing import HOUR, connect, sum_rows, use
from tests.fakes.stripe import CUT, KEY, LOST, METER, Reply, StripeFake
from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow
USERS = ("a", "b", "c", "d", "e", "f", "g", "h")
HOURS = 3


def build_settings(fake: StripeFake) -> dict[str, Any]:
    """A service that sends meter events to the fake."""
    return {
        "KOTAE_STRIPE_KEY": KEY,
        "KOTAE_STRIPE_METER": METER,
        "KOTAE_STRIPE_BASE_URL": fake.url,
    }


async def prepare(data_dir: Path) -> None:
    """Users with usage in the last hours, in the database of a service that has ended."""
    database = Database(f"sqlite+aiosqlite:///{data_dir / 'kotae.db'}")
    start = utc_now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start -= (HOURS + 2) * HOUR
    for n, user_id in enumerate(USERS):
        await connect(database, user_id, at=start)
        for hour in range(HOURS):
            at = start + hour * HOUR + timedelta(minutes=n)
            await use(database, 1000 * n + hour + 1, at, user_id)
    await database.close()


def list_states(data_dir: Path) -> list[str]:
    """The states of all events."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        return [row[0] for row in connection.execute("SELECT state FROM billing_events")]


async def read_sums(data_dir: Path) -> dict[tuple[str, int], int]:
    """The sums of the rows."""
    database = Database(f"sqlite+aiosqlite:///{data_dir / 'kotae.db'}")
    sums = await sum_rows(database)
    await database.close()
    return sums


def make_due(data_dir: Path) -> None:
    """Let the next attempts be due now, so that the test needs not wait."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        connection.execute(
            "UPDATE billing_events SET next_at = ? WHERE next_at IS NOT NULL",
            [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"],
        )


async def wait_delivered(data_dir: Path) -> None:
    """Wait until all events are delivered."""
    expected = ["delivered"] * len(USERS) * HOURS
    async with asyncio.timeout(60):
        while await asyncio.to_thread(list_states, data_dir) != expected:
            await asyncio.sleep(0.05)


async def kill(service: ServiceProcess) -> None:
    """End a service without a chance to finish."""
    service.signal(signal.SIGKILL)
    await service.wait()


@pytest.mark.parametrize("reply", [None, LOST, CUT])
async def test_kills_while_events_are_sent_bill_once(tmp_path: Path, reply: Reply | None) -> None:
    """Killed while requests are answered, lost or cut, every event is accepted once."""
    async with StripeFake() as fake:
        settings = build_settings(fake)
        async with serving(tmp_path):
            pass
        await prepare(tmp_path)
        if reply is not None:
            fake.replies.extend([reply] * 15)
        for kills in range(1, 5):
            fake.release = asyncio.Event() if kills % 2 else None
            async with serving(tmp_path, **settings) as service:
                await fake.wait_requests(len(fake.requests) + kills)
                await kill(service)
            if fake.release is not None:
                fake.release.set()
            fake.release = None
            make_due(tmp_path)
        async with serving(tmp_path, **settings):
            make_due(tmp_path)
            await wait_delivered(tmp_path)
        assert set(fake.count_identifiers().values()) == {1}
        assert len(fake.accepted) == len(USERS) * HOURS
        assert fake.sum_nano_usd() == await read_sums(tmp_path)


async def test_kills_at_any_time_bill_once(tmp_path: Path) -> None:
    """Killed after growing delays, through evaluation and sending, nothing is lost or doubled."""
    async with StripeFake() as fake:
        settings = build_settings(fake)
        async with serving(tmp_path):
            pass
        await prepare(tmp_path)
        for n in range(8):
            async with serving(tmp_path, **settings) as service:
                await asyncio.sleep(1.9 + n * 0.03)  # the time of the kill is what varies
                await kill(service)
        async with serving(tmp_path, **settings):
            await wait_delivered(tmp_path)
        assert set(fake.count_identifiers().values()) == {1}
        assert fake.sum_nano_usd() == await read_sums(tmp_path)
