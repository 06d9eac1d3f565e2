"""Quotas of several replicas on PostgreSQL: exact through crashes of either side."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.encoding import create_id, read_id_time, utc_now
from service.core.errors import QuotaExceeded, QuotaUnavailable
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.pricing import Usage
from service.core.quota.history import rebuild_usage
from service.core.quota.local import LocalQuota
from service.core.quota.shared import LEASE_SECONDS, SharedQuota
from service.core.records import Outcome, UsageSource
from tests.postgres import PostgresServer, hanging, running_server, temporary_database
from tests.quotas import Clock, running_quota
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow
REPLICAS, ROOM, TRIES = 3, 100, 500
SUBJECTS = [QuotaSubject.for_user("alice", QuotaLimits(tokens_per_month=ROOM))]


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database that replicas share."""
    async with temporary_database(postgres) as database:
        yield database


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A server that these tests crash."""
    with running_server() as server:
        yield server


async def open_replicas(stack: AsyncExitStack, url: str) -> list[SharedQuota]:
    """The quotas of some replicas, with the time of this machine."""
    clock = Clock(time.time())
    return [
        await stack.enter_async_context(running_quota(url, clock, slot=slot))
        for slot in range(REPLICAS)
    ]


async def hold_many(
    quotas: list[SharedQuota],
    prefix: str,
    count: int,
    subjects: list[QuotaSubject] = SUBJECTS,
) -> list[str]:
    """Hold a token for each of some answers, on all replicas in parallel: those admitted."""
    names = [f"{prefix}{n}" for n in range(count)]
    results = await asyncio.gather(
        *(
            quotas[n % len(quotas)].hold(name, subjects, tokens=1, nano_usd=None)
            for n, name in enumerate(names)
        ),
        return_exceptions=True,
    )
    assert all(isinstance(result, QuotaExceeded | None) for result in results), results
    return [name for name, result in zip(names, results, strict=True) if result is None]


async def read_held(quota: SharedQuota) -> int:
    """The tokens held by all replicas."""
    await quota.refresh(SUBJECTS)
    return quota.get_usage("user:alice")["tokens_per_month"][1]


async def test_parallel_holds_of_replicas_are_exact(database: Database) -> None:
    """Of 500 parallel holds over three replicas with room for 100, exactly 100 succeed.

    Repeated with users whose accounts are created meanwhile.
    """
    async with AsyncExitStack() as stack:
        quotas = await open_replicas(stack, database._url)
        for user in range(15):
            subjects = [QuotaSubject.for_user(f"u{user}", QuotaLimits(tokens_per_month=ROOM))]
            admitted = await hold_many(quotas, f"a{user}-", TRIES, subjects)
            await quotas[0].refresh(subjects)
            held = quotas[0].get_usage(f"user:u{user}")["tokens_per_month"][1]

            assert (len(admitted), held) == (ROOM, ROOM)


async def test_holds_survive_a_crash_of_postgresql(fragile: PostgresServer) -> None:
    """PostgreSQL may lose the last holds; it admits others after replicas have registered them."""
    async with temporary_database(fragile) as database, AsyncExitStack() as stack:
        quotas = await open_replicas(stack, database._url)
        assert len(await hold_many(quotas, "a", 60)) == 60
        fragile.stop("immediate")
        fragile.start()
        for quota in quotas:
            with pytest.raises(QuotaUnavailable):
                await quota.hold("b", SUBJECTS, tokens=1, nano_usd=None)
        async with asyncio.timeout(LEASE_SECONDS):  # afterwards it would open in any case
            while not all(quota.statistics().available for quota in quotas):
                for quota in quotas:
                    with suppress(QuotaUnavailable):
                        await quota.keep_alive()
        admitted = await hold_many(quotas, "c", TRIES)

        assert len(admitted) == ROOM - 60
        assert await read_held(quotas[0]) == ROOM


async def test_a_store_that_hangs_refuses_at_once(fragile: PostgresServer) -> None:
    """The first hold waits for the time limit, the next ones do not; those without limits go on."""
    async with temporary_database(fragile) as database, AsyncExitStack() as stack:
        clock = Clock(time.time())
        quota = await stack.enter_async_context(running_quota(database._url, clock, seconds=2))
        with hanging(fragile):
            with pytest.raises(QuotaUnavailable):
                await quota.hold("a", SUBJECTS, tokens=1, nano_usd=None)
            begun = time.monotonic()
            with pytest.raises(QuotaUnavailable):
                await quota.hold("b", SUBJECTS, tokens=1, nano_usd=None)
            await quota.hold("c", [QuotaSubject.for_user("bob")], tokens=1, nano_usd=None)
            elapsed = time.monotonic() - begun
        await quota.keep_alive()
        held = await read_held(quota)

        assert elapsed < 0.5
        assert held == 0, "a hold whose reply was missing is released"


HOLDER = """
import asyncio, sys, time
from tests.core.quota.test_postgres import SUBJECTS
from tests.quotas import Clock, running_quota

async def hold():
    async with running_quota(sys.argv[1], Clock(time.time()), slot=9, ttl_seconds=0.5) as quota:
        for n in range(5):
            await quota.hold(f"lost {n}", SUBJECTS, tokens=1, nano_usd=None)
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_holds_of_a_killed_replica_expire(database: Database) -> None:
    """They count until their time is over; then another replica removes them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, database._url, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stdout
    assert await process.stdout.readline() == b"held\n"
    process.kill()
    await process.wait()
    clock = Clock(time.time())
    async with running_quota(database._url, clock) as quota:
        held = await read_held(quota)
        clock.pass_time(LEASE_SECONDS)
        async with asyncio.timeout(20):
            while await read_held(quota):
                await quota.keep_alive()

        assert held == 5
        assert quota.statistics().expired == 5


async def test_used_amounts_equal_the_rows(database: Database) -> None:
    """Whatever happens to holds and records, accounts have the sums of the log."""
    key = QuotaSubject.for_key("k", QuotaLimits(tokens_per_day=10**6))
    subjects = [QuotaSubject.for_user("alice", QuotaLimits(concurrent=50)), key]
    names = [create_id(utc_now()) for _ in range(6)]

    def build(name: str, **fields: Any) -> Outcome:
        intent = build_intent(
            id=name, user_id="alice", key_id="k", held_tokens=40, created_at=read_id_time(name)
        )
        return build_outcome(intent, **fields)

    async with AsyncExitStack() as stack:
        first, second, _ = await open_replicas(stack, database._url)
        await write(database, [build(names[0])])  # before the account exists
        for quota, name in zip([first, second, first], names[1:4], strict=True):
            await quota.hold(name, subjects, tokens=40, nano_usd=None)
        unknown = build(names[1], usage_source=UsageSource.UNKNOWN, usage=None)
        await write(database, [unknown, build(names[2])])
        late = build(names[1], usage=Usage(prompt_tokens=1, completion_tokens=1))
        await write(database, [late, build(names[2])])  # replaced, and delivered again
        await write(database, [build(names[4])])  # of an answer without a hold
        await first.refresh(subjects)
        local = LocalQuota(60)
        async with database.read_session() as session:
            await rebuild_usage(session, local)
        for subject in subjects:
            shared, logged = first.get_usage(subject.name), local.get_usage(subject.name)

            assert {name: used for name, (used, _) in shared.items()} == {
                name: used for name, (used, _) in logged.items()
            }
            assert (shared["concurrent"], shared["tokens_per_day"][1]) == ((0, 1), 40)


async def test_no_hold_is_left_after_its_row(database: Database) -> None:
    """A row that another process writes, as recovery does, ends the hold."""
    async with AsyncExitStack() as stack:
        (quota, *_) = await open_replicas(stack, database._url)
        intent = build_intent(user_id="alice")
        await quota.hold(intent.id, SUBJECTS, tokens=50, nano_usd=None)
        await write(database, [build_outcome(intent)])
        async with database.read_session() as session:
            holds = (await session.execute(sa.text("SELECT count(*) FROM quota_holds"))).scalar()

        assert (holds, await read_held(quota)) == (0, 0)
