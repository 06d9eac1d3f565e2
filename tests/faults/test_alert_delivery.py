"""Alerts of a service that is killed: none is lost, and each has one id."""

import asyncio
import itertools
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import ProviderFake
from tests.fakes.receiver import SECRET, Failure, ReceiverFake
from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 10}
PRICES = '{"m": {"input": 1000, "output": 1000}}'


def build_settings(fake: ProviderFake, receiver: ReceiverFake) -> dict[str, Any]:
    """A service with prices, that sends webhooks to the receiver."""
    return {
        "OPENAI_BASE_URL": fake.base_url,
        "OPENAI_API_KEY": "k",
        "KOTAE_MODEL": "m",
        "KOTAE_PRICES": PRICES,
        "KOTAE_WEBHOOK_URL": receiver.url,
        "KOTAE_WEBHOOK_SECRET": SECRET,
        "KOTAE_WEBHOOK_PRIVATE_ADDRESSES": "true",
    }


async def create_budget(service: ServiceProcess) -> None:
    """A budget that one answer exceeds."""
    body = {"name": "b", "subject": "all", "amount_usd": "0.000001", "period": "month"}
    response = await service.client.post("/ai/budgets", json=body)
    assert response.status_code == 201, response.text


def list_states(data_dir: Path) -> list[tuple[int, str]]:
    """Threshold and state of each alert."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        query = "SELECT threshold, state FROM budget_alerts ORDER BY threshold"
        return list(connection.execute(query))


async def wait_delivered(data_dir: Path) -> None:
    """Wait until all alerts are delivered."""
    expected = [(threshold, "delivered") for threshold in (50, 80, 100)]
    async with asyncio.timeout(40):
        while await asyncio.to_thread(list_states, data_dir) != expected:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("response", [200, Failure.CUT, Failure.HANG])
async def test_a_kill_between_sending_and_marking_repeats_the_same_id(
    tmp_path: Path, fake: ProviderFake, response: int | Failure
) -> None:
    """Killed while requests arrive or are confirmed, the service sends the same ids again."""
    async with ReceiverFake() as receiver:
        settings = build_settings(fake, receiver)
        receiver.responses.extend([response] * 6)
        for round_ in range(3):
            async with serving(tmp_path, **settings) as service:
                if not round_:
                    await create_budget(service)
                    assert (await service.client.post("/ai/test", json=ASK)).status_code == 200
                if round_ < 2:
                    await receiver.wait_count(len(receiver.deliveries) + 1)
                    service.signal(signal.SIGKILL)
                    await service.wait()
                    states = {state for _, state in list_states(tmp_path)}
                    if not states & {"pending"}:
                        break
                else:
                    await wait_delivered(tmp_path)
    assert set(receiver.count_ids().values()) == {1}
    assert {threshold for _, threshold in receiver.count_ids()} == {50, 80, 100}
    assert all(delivery.is_signed() for delivery in receiver.deliveries)


async def test_kills_at_any_time_leave_one_alert_for_each_threshold(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """Killed after growing delays, through evaluation and delivery, each threshold has one id."""
    async with ReceiverFake() as receiver:
        settings = build_settings(fake, receiver)
        async with serving(tmp_path, **settings) as service:
            await create_budget(service)
            assert (await service.client.post("/ai/test", json=ASK)).status_code == 200
            service.signal(signal.SIGKILL)
            await service.wait()
        for n in itertools.count():
            async with serving(tmp_path, **settings) as service:
                if n == 6:
                    await wait_delivered(tmp_path)
                    break
                await asyncio.sleep(1.5 + n * 0.3)  # the time of the kill is what varies
                service.signal(signal.SIGKILL)
                await service.wait()
    ids = receiver.count_ids()
    assert {threshold for _, threshold in ids} == {50, 80, 100}
    assert set(ids.values()) == {1}
