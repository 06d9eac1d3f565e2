"""Payments of a service that is killed: each is credited once, and none is lost."""

import asyncio
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.stripe import KEY, SECRET, StripeFake
from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow
CALLS = 5  # of the processing of an event


def build_settings(fake: StripeFake) -> dict[str, Any]:
    """A service that is connected to the fake."""
    return {
        "KOTAE_STRIPE_KEY": KEY,
        "KOTAE_STRIPE_WEBHOOK_SECRET": SECRET,
        "KOTAE_STRIPE_BASE_URL": fake.url,
        "KOTAE_PUBLIC_URL": "http://127.0.0.1:9",
    }


async def top_up(service: ServiceProcess, fake: StripeFake) -> str:
    """Pay 10 USD without webhooks; return the payment."""
    response = await service.client.post("/billing/checkout", json={"amount": "10"})
    assert response.status_code == 201, response.text
    return fake.payments.pay(response.json()["session_id"])


async def deliver(service: ServiceProcess, fake: StripeFake, begin: int = 0) -> None:
    """Send the events of the fake since a number of them, twice and the newest first."""
    fake.payments.endpoint, fake.payments.copies = f"{service.url}/billing/webhook", 2
    await fake.payments.deliver_new(begin)


async def kill(service: ServiceProcess) -> None:
    """End a service without a chance to finish."""
    service.signal(signal.SIGKILL)
    await service.wait()


async def wait_processed(service: ServiceProcess, data_dir: Path) -> None:
    """Wait until no event is pending."""
    query = "SELECT count(*) FROM billing_inbox WHERE state = 'pending'"

    def count() -> int:
        with sqlite3.connect(data_dir / "kotae.db") as connection:
            return int(connection.execute(query).fetchone()[0])

    async with asyncio.timeout(60):
        while await asyncio.to_thread(count):
            await asyncio.sleep(0.05)


async def check(service: ServiceProcess, fake: StripeFake, data_dir: Path) -> None:
    """The balance is what Stripe says, the sum of the entries, and no event has failed."""
    await deliver(service, fake)
    await wait_processed(service, data_dir)
    account = (await service.client.get("/billing")).json()
    assert float(account["balance"]) * 10**9 == fake.payments.sum_nano_usd("local")
    causes = [entry["cause"] for entry in account["entries"]]
    assert len(set(causes)) == len(causes)
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        states = {row[0] for row in connection.execute("SELECT state FROM billing_inbox")}
        (total,) = connection.execute("SELECT sum(amount_nano_usd) FROM ledger_entries").fetchone()
    assert (states, total) == ({"processed"}, fake.payments.sum_nano_usd("local"))


@pytest.mark.parametrize("waits_afterwards", [False, True])
async def test_kills_at_every_call_credit_once(tmp_path: Path, waits_afterwards: bool) -> None:
    """Killed before and after each call of the processing, a payment and a refund are credited."""
    async with StripeFake() as fake:
        settings, payments = build_settings(fake), fake.payments
        async with serving(tmp_path, **settings) as service:
            payments.refund(await top_up(service, fake), 300)
            payments.release, payments.waits_afterwards = asyncio.Event(), waits_afterwards
            payments.release_from = len(payments.calls) + 1
            await deliver(service, fake)
            await payments.wait_calls(payments.release_from)
            await kill(service)
        for call in range(2, CALLS + 1):
            payments.release.set()
            payments.release = asyncio.Event()
            payments.release_from = len(payments.calls) + call
            async with serving(tmp_path, **settings) as service:
                await payments.wait_calls(payments.release_from)
                await kill(service)
        payments.release.set()
        async with serving(tmp_path, **settings) as service:
            await check(service, fake, tmp_path)


async def test_kills_at_any_time_credit_once(tmp_path: Path) -> None:
    """Killed after growing delays, while events arrive and are processed, nothing is doubled."""
    async with StripeFake() as fake:
        settings = build_settings(fake)
        for n in range(4):
            async with serving(tmp_path, **settings) as service:
                begin = len(fake.payments.events)
                payment = await top_up(service, fake)
                if n % 2:
                    fake.payments.refund(payment, 100 * n)
                delivery = asyncio.create_task(deliver(service, fake, begin))
                await asyncio.sleep(0.02 + n * 0.5)  # the time of the kill is what varies
                await kill(service)
                await asyncio.wait([delivery])
                if not delivery.cancelled():
                    delivery.exception()  # webhooks that were not confirmed are repeated
        async with serving(tmp_path, **settings) as service:
            await check(service, fake, tmp_path)


@pytest.mark.parametrize("waits_afterwards", [False, True])
async def test_a_kill_while_the_customer_is_created_leaves_one(
    tmp_path: Path, waits_afterwards: bool
) -> None:
    """The next request uses the key that was stored before the first one."""
    async with StripeFake() as fake:
        settings, payments = build_settings(fake), fake.payments
        payments.release, payments.waits_afterwards = asyncio.Event(), waits_afterwards
        async with serving(tmp_path, **settings) as service:
            request = asyncio.create_task(
                service.client.post("/billing/checkout", json={"amount": "10"})
            )
            await payments.wait_calls(1)
            await kill(service)
            await asyncio.wait([request])
            assert request.exception() is not None
        payments.release.set()
        payments.release = None
        async with serving(tmp_path, **settings) as service:
            await top_up(service, fake)
            await check(service, fake, tmp_path)
        assert len(payments.list_objects("cus_")) == 1
