"""Full or frozen disks under the spool and the data folder."""

import asyncio
from pathlib import Path
from statistics import median

import httpx2
import pytest

from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.oracle import check
from tests.faults.scene import (
    Callers,
    fill_disk,
    freeze_disk,
    get_readiness,
    mount_ext4,
    mount_small_disk,
    settings_for,
    stop_service,
    wait_drained,
    wait_status,
)
from tests.process import serving

pytestmark = pytest.mark.slow

LONG = "長" * 15_000  # twenty such prompts fill a segment of 2 MiB


async def fill_journal(service_client: httpx2.AsyncClient) -> Callers:
    """Send prompts until one is refused."""
    callers = Callers(service_client, LONG)
    while not callers.refused:
        await callers.ask()
        assert len(callers.acknowledged) < 500
    return callers


async def test_a_full_spool_refuses_new_answers_and_completes_others(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """A full spool is a 503 before the call; started answers complete; free space resolves it."""
    data_dir, goes_on, ends = tmp_path / "data", asyncio.Event(), asyncio.Event()
    data_dir.mkdir()
    with mount_small_disk(tmp_path / "spool", "8m") as spool:
        async with serving(
            data_dir,
            **settings_for(fake, KOTAE_JOURNAL_SPOOL=spool, KOTAE_JOURNAL_BYTES_MAX=4_194_304),
        ) as service:
            begun, started = Callers(service.client, "begun"), Callers(service.client, "kept")
            fake.next(*[Behaviour(hold=goes_on, hold_after=2)] * 5)
            begun_tasks = [asyncio.create_task(begun.ask()) for _ in range(5)]
            await fake.wait_calls(5)
            fake.next(*[Behaviour(hold=ends, hold_after=2)] * 5)
            kept_tasks = [asyncio.create_task(started.ask()) for _ in range(5)]
            await fake.wait_calls(10)
            ballast = fill_disk(spool)
            full = await fill_journal(service.client)
            calls = len(fake.calls)
            refused = await service.client.post(
                "/ai/test", json={"prompt": LONG, "grounded": False}
            )
            report = await get_readiness(service)
            assert len(fake.calls) == calls
            goes_on.set()
            assert await asyncio.gather(*begun_tasks) == [True] * 5
            ballast.unlink()
            after = Callers(service.client, "after")
            await after.ask_many(20)
            ends.set()
            assert await asyncio.gather(*kept_tasks) == [True] * 5
            await wait_drained(service)
            await wait_status(service, "ready")
            await stop_service(service, fake)

    assert (refused.status_code, refused.json()["code"], full.refused) == (
        503,
        "journal_full",
        ["journal_full"],
    )
    assert report["status"] == "degraded"
    assert after.refused == []
    rows = check(
        data_dir,
        fake.calls,
        [*begun.acknowledged, *started.acknowledged, *full.acknowledged, *after.acknowledged],
    )
    assert {row["status"] for row in rows} == {"completed"}
    assert all(row["response"] for row in rows)


async def test_a_small_spool_is_reused(tmp_path: Path, fake: ProviderFake) -> None:
    """A spool of one segment refuses temporarily: committed answers free their space."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with mount_small_disk(tmp_path / "spool", "1500k") as folder:
        async with serving(
            data_dir,
            **settings_for(fake, KOTAE_JOURNAL_SPOOL=folder, KOTAE_JOURNAL_BYTES_MAX=2_097_152),
        ) as service:
            callers = Callers(service.client, LONG)
            async with asyncio.timeout(20):
                while len(callers.acknowledged) < 25:
                    if not await callers.ask():
                        await wait_drained(service)
            await wait_drained(service)
            await stop_service(service, fake)

    assert set(callers.refused) <= {"journal_full"}
    assert len(check(data_dir, fake.calls, callers.acknowledged)) == 25


async def test_a_full_data_folder_delays_rows(tmp_path: Path, fake: ProviderFake) -> None:
    """With a full folder answers continue, health is degraded; free space brings all rows."""
    with mount_small_disk(tmp_path / "data", "16m") as data_dir:
        async with serving(
            data_dir, **settings_for(fake, KOTAE_JOURNAL_SPOOL=tmp_path / "spool")
        ) as service:
            callers = Callers(service.client)
            await callers.ask_many(20)
            await wait_drained(service)
            ballast = fill_disk(data_dir)
            later = Callers(service.client, LONG)
            await later.ask_many(12)
            await wait_status(service, "degraded")
            ballast.unlink()
            await wait_drained(service)
            await wait_status(service, "ready")
            await stop_service(service, fake)

        assert callers.refused == later.refused == []
        assert len(check(data_dir, fake.calls, [*callers.acknowledged, *later.acknowledged])) == 32


async def test_a_full_data_folder_is_recovered_from(tmp_path: Path, fake: ProviderFake) -> None:
    """After a stop with a full data folder, the next start writes every row from the spool."""
    with mount_small_disk(tmp_path / "data", "16m") as data_dir:
        settings = settings_for(fake, KOTAE_JOURNAL_SPOOL=tmp_path / "spool")
        async with serving(data_dir, **settings) as service:
            callers = Callers(service.client, LONG)
            await callers.ask_many(8)
            ballast = fill_disk(data_dir)
            await callers.ask_many(12)
            await wait_status(service, "degraded")
            await stop_service(service, fake)
        ballast.unlink()
        async with serving(data_dir, **settings) as service:
            await wait_drained(service)
            await stop_service(service, fake)

        assert len(check(data_dir, fake.calls, callers.acknowledged)) == 20


async def test_a_frozen_disk_slows_no_answer(tmp_path: Path, fake: ProviderFake) -> None:
    """Answers are as fast as before while the disk is frozen, and all are recorded."""
    fake.default = Behaviour(chunks=4, gap=0.002)
    with mount_ext4(tmp_path / "data", tmp_path / "image") as data_dir:
        async with serving(
            data_dir, **settings_for(fake, KOTAE_JOURNAL_SPOOL=tmp_path / "spool")
        ) as service:
            callers = Callers(service.client)
            await callers.ask_many(30)
            before = await callers.ask_many(100, at_once=2)
            await wait_drained(service)
            async with freeze_disk(data_dir):
                began = asyncio.get_running_loop().time()
                during: list[float] = []
                while asyncio.get_running_loop().time() - began < 3 or len(during) < 100:
                    during += await callers.ask_many(20, at_once=2)
                    assert len(during) < 5000
            await wait_drained(service)
            await stop_service(service, fake)

        assert callers.refused == []
        assert median(during) < median(before) * 2 + 0.02
        assert (
            max(during) < 2
        )  # of the three seconds of the freeze; bench/accounting.py measures the p99
        assert len(check(data_dir, fake.calls, callers.acknowledged)) == 130 + len(during)


async def test_health_on_a_frozen_disk(tmp_path: Path, fake: ProviderFake) -> None:
    """Health responds while the disk is frozen and is not `ok`."""
    with mount_ext4(tmp_path / "data", tmp_path / "image") as data_dir:
        async with serving(
            data_dir, **settings_for(fake, KOTAE_JOURNAL_SPOOL=tmp_path / "spool")
        ) as service:
            callers = Callers(service.client)
            await callers.ask()
            await wait_drained(service)
            async with freeze_disk(data_dir):
                await callers.ask_many(10)
                await wait_status(service, "degraded")
            await wait_drained(service)
            await wait_status(service, "ready")
            await stop_service(service, fake)

        assert len(check(data_dir, fake.calls, callers.acknowledged)) == 11


@pytest.mark.parametrize("spool", ["none", "spool"])
async def test_answers_that_wait_for_the_disk(
    tmp_path: Path, fake: ProviderFake, spool: str
) -> None:
    """With KOTAE_JOURNAL_SYNC_MS=0 an intent is on the disk before the provider call."""
    with mount_ext4(tmp_path / "data", tmp_path / "image") as data_dir:
        folder = tmp_path / spool if spool != "none" else spool
        async with serving(
            data_dir, **settings_for(fake, KOTAE_JOURNAL_SPOOL=folder, KOTAE_JOURNAL_SYNC_MS=0)
        ) as service:
            callers = Callers(service.client)
            await callers.ask_many(20)
            await wait_drained(service)
            async with freeze_disk(data_dir):
                waiting = [asyncio.create_task(callers.ask()) for _ in range(5)]
                _, pending = await asyncio.wait(waiting, timeout=0.5)
                assert (len(pending), len(fake.calls)) == (5, 20)
            await asyncio.gather(*waiting)
            await wait_drained(service)
            await stop_service(service, fake)

        assert callers.refused == []
        assert len(check(data_dir, fake.calls, callers.acknowledged)) == 25
