"""Meter events of a service that is killed: each is billed once, and none is lost."""

import asyncio
import json
import random
import signal
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.core.database.engine import Database
from service.core.encoding import utc_now
from tests.billing import HOUR, connect, sum_rows, use
from tests.fakes.stripe import (
    BUSY,
    CUT,
    ERROR,
    ERROR_AFTERWARDS,
    KEY,
    LOST,
    METER,
    SECRET,
    Reply,
    StripeFake,
    sign,
)
from tests.process import ServiceProcess, kotae, serving

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


@dataclass
class Story:
    """Usage, failures, reports and kills of a service, in a random order that a seed determines."""

    data_dir: Path
    fake: StripeFake
    choose: random.Random
    start: datetime
    notifications: list[dict[str, Any]] = field(default_factory=list)

    async def add_usage(self) -> None:
        """Add rows to past hours, while no service runs: late usage."""
        database = Database(f"sqlite+aiosqlite:///{self.data_dir / 'kotae.db'}")
        for _ in range(self.choose.randrange(1, 4)):
            seconds = self.choose.randrange(HOURS * 3600)
            user_id = self.choose.choice(USERS)
            at = self.start + timedelta(seconds=seconds)
            await use(database, self.choose.randrange(1, 10**7), at, user_id)
        await database.close()

    def plan_failures(self) -> None:
        """Plan an outage, a rate limit, errors and lost responses."""
        self.fake.is_away = self.choose.random() < 0.15
        self.fake.replies.clear()
        self.fake.replies.extend(
            self.choose.choices([LOST, CUT, ERROR, ERROR_AFTERWARDS, BUSY], k=2)
        )

    def report_error(self) -> None:
        """Report an accepted event that is not billed after all, with another one before it."""
        billed = [
            event.identifier
            for event in self.fake.accepted
            if event.identifier not in self.fake.dropped
        ]
        if billed and self.choose.random() < 0.3:
            identifier = self.choose.choice(billed)
            self.fake.dropped.add(identifier)
            event_id = f"evt_{len(self.notifications)}"
            self.notifications.append(self.fake.report_errors(event_id, [identifier]))

    async def deliver(self, service: ServiceProcess, count: int) -> None:
        """Deliver notifications as Stripe does: in any order, and repeatedly."""
        for event in self.choose.sample(self.notifications, min(count, len(self.notifications))):
            body = json.dumps(event).encode()
            headers = {"Content-Type": "application/json", "Stripe-Signature": sign(body)}
            with suppress(httpx2.TransportError):
                await service.client.post("/billing/webhook", content=body, headers=headers)

    async def run_until_killed(self, settings: dict[str, Any]) -> None:
        """Run the service, and kill it at any moment of its work."""
        async with serving(self.data_dir, **settings) as service:
            if self.choose.random() < 0.5 and not self.fake.is_away:
                self.fake.release = asyncio.Event()  # killed while requests wait for a response
            delivering = asyncio.ensure_future(self.deliver(service, 3))
            # The first tick of the worker begins 2 s after the start.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.choose.uniform(1.5, 6)):
                    await self.fake.wait_requests(
                        len(self.fake.requests) + self.choose.randrange(1, 6)
                    )
                await asyncio.sleep(self.choose.uniform(0, 0.05))
            await kill(service)
            await delivering
        if self.fake.release is not None:
            self.fake.release.set()
        self.fake.release = None

    async def settle(self, settings: dict[str, Any]) -> None:
        """Let everything be delivered, and send again what Stripe could not use."""
        self.fake.is_away = False
        self.fake.replies.clear()
        async with serving(self.data_dir, **settings) as service:
            await self.deliver(service, len(self.notifications))
            expected = await read_sums(self.data_dir)
            async with asyncio.timeout(180):
                while (
                    not await asyncio.to_thread(is_settled, self.data_dir)
                    or self.fake.sum_nano_usd() != expected
                ):
                    make_due(self.data_dir)
                    listed = await service.client.get("/billing/events", params={"state": "review"})
                    for event in listed.json()["items"]:
                        path = f"/billing/events/{event['id']}/resolve"
                        await service.client.post(path, json={"decision": "send"})
                    await asyncio.sleep(0.2)


def is_settled(data_dir: Path) -> bool:
    """Whether nothing waits: all meter events are decided, and the inbox is processed."""
    query = (
        "SELECT (SELECT count(*) FROM billing_events WHERE state IN ('pending', 'review'))"
        " + (SELECT count(*) FROM billing_inbox WHERE state <> 'processed')"
    )
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        return bool(connection.execute(query).fetchone() == (0,))


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(8, marks=pytest.mark.timeout(400)),
        pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(4060)]),
    ],
)
async def test_kills_with_outages_reports_and_late_usage_bill_once(
    tmp_path: Path, kills: int
) -> None:
    """Every identifier is accepted once, every nano-dollar is billed once, and none is lost.

    Stripe is away, busy, loses responses, and reports errors later, in webhooks that are repeated
    and reordered. In the end the audit agrees with Stripe.
    """
    start = utc_now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start -= (HOURS + 2) * HOUR
    async with StripeFake() as fake:
        story = Story(tmp_path, fake, random.Random(kills), start)
        settings = build_settings(fake) | {"KOTAE_STRIPE_WEBHOOK_SECRET": SECRET}
        async with serving(tmp_path):
            pass
        await prepare(tmp_path)
        for _ in range(kills):
            await story.add_usage()
            story.plan_failures()
            story.report_error()
            await story.run_until_killed(settings)
            make_due(tmp_path)
        await story.settle(settings)
        assert set(fake.count_identifiers().values()) == {1}
        assert fake.sum_nano_usd() == await read_sums(tmp_path)
        status, output, _ = await kotae("audit", "--stripe", data_dir=tmp_path, **settings)
    assert (status, "different  0" in output) == (0, True), output
