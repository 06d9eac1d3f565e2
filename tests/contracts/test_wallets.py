"""Contract of `Wallets`, for every implementation."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.billing.postgres_wallets import PostgresWallets
from service.core.billing.wallets import LocalWallets
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.errors import OutOfCredit
from service.core.ports import Funds, Wallets
from service.core.pricing import ChargeTerms
from service.core.records import Outcome, UsageSource
from tests.postgres import PostgresServer, temporary_database
from tests.records import build_intent, build_outcome
from tests.rows import write
from tests.wallets import add_funds, get_balance, read_debits

TERMS = ChargeTerms(prepaid=True, markup=Decimal(1))


class WalletsFixture:
    """Wallets, as each replica sees them, and the database with the balances."""

    def __init__(self, replicas: Sequence[Wallets], database: Database) -> None:
        self.replicas, self.database = replicas, database
        self.wallets = replicas[0]

    async def write_row(self, name: str, charge: int | None) -> None:
        """Write the row of an answer, as the writer does."""
        intent = build_intent(id=name, user_id="alice", terms=TERMS)
        outcome = build_outcome(intent, charge_nano_usd=charge)
        await write(self.database, [outcome])
        for wallets in self.replicas:
            wallets.remove_written([name])


async def wait_nothing() -> None:
    """There are no rows of earlier processes."""


@pytest.fixture(params=["local", pytest.param("postgres", marks=pytest.mark.slow)])
async def fixture(
    request: pytest.FixtureRequest, database: Database
) -> AsyncIterator[WalletsFixture]:
    """Each implementation; that of PostgreSQL in two replicas."""
    if request.param == "local":
        yield WalletsFixture([LocalWallets(database, wait_nothing)], database)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(temporary_database(server))
        replicas = [PostgresWallets(shared._url, shared, ttl_seconds=60) for _ in range(2)]
        for wallets in replicas:
            stack.push_async_callback(wallets.close)
        yield WalletsFixture(replicas, shared)


async def try_hold(wallets: Wallets, name: str, nano_usd: int, user_id: str = "alice") -> bool:
    """Whether an amount could be held."""
    try:
        await wallets.hold(name, user_id, nano_usd)
    except OutOfCredit:
        return False
    return True


async def test_parallel_holds_do_not_exceed_the_balance(fixture: WalletsFixture) -> None:
    """Of 50 holds at once, with funds for seven, seven are admitted."""
    await add_funds(fixture.database, 79)
    count = len(fixture.replicas)
    held = await asyncio.gather(
        *(try_hold(fixture.replicas[n % count], f"a{n}", 11) for n in range(50))
    )
    assert sum(held) == 7
    assert await fixture.wallets.read_funds("alice") == Funds(79, 77)


async def test_a_refusal_says_what_is_missing(fixture: WalletsFixture) -> None:
    """The error has what is needed and what is available."""
    await add_funds(fixture.database, 10)
    await fixture.wallets.hold("a", "alice", 4)
    with pytest.raises(OutOfCredit) as caught:
        await fixture.wallets.hold("b", "alice", 7)
    assert caught.value.extra == {"needed": "0.000000007", "available": "0.000000006"}
    assert not await try_hold(fixture.wallets, "c", 1, user_id="bob")


async def test_a_hold_changes_to_another_amount(fixture: WalletsFixture) -> None:
    """It is compared without its own amount; a refused change leaves it as it was."""
    await add_funds(fixture.database, 10)
    await fixture.wallets.hold("a", "alice", 8)
    assert await try_hold(fixture.wallets, "a", 10)
    assert not await try_hold(fixture.wallets, "a", 11)
    assert await fixture.wallets.read_funds("alice") == Funds(10, 10)
    assert await try_hold(fixture.wallets, "a", 3)
    assert await try_hold(fixture.wallets, "b", 7)


async def test_a_released_hold_is_available_again(fixture: WalletsFixture) -> None:
    """Releasing is idempotent."""
    await add_funds(fixture.database, 10)
    await fixture.wallets.hold("a", "alice", 10)
    fixture.wallets.release("a")
    fixture.wallets.release("a")
    async with asyncio.timeout(5):
        while (await fixture.wallets.read_funds("alice")).held:
            await asyncio.sleep(0)
    assert await try_hold(fixture.wallets, "b", 10)


async def test_a_row_replaces_its_hold(fixture: WalletsFixture) -> None:
    """The debit is committed before the hold ends, and the difference is available."""
    await add_funds(fixture.database, 10)
    name = build_intent().id
    await fixture.wallets.hold(name, "alice", 10)
    await fixture.write_row(name, 4)
    assert await fixture.wallets.read_funds("alice") == Funds(6, 0)
    assert await try_hold(fixture.wallets, "b", 6)


async def test_a_row_without_a_charge_ends_its_hold(fixture: WalletsFixture) -> None:
    """Unknown usage and a charge of 0 debit nothing."""
    await add_funds(fixture.database, 10)
    for charge in (None, 0):
        name = build_intent().id
        await fixture.wallets.hold(name, "alice", 10)
        await fixture.write_row(name, charge)
        assert await fixture.wallets.read_funds("alice") == Funds(10, 0)
    assert await read_debits(fixture.database) == {}


async def test_nothing_is_admitted_below_zero(fixture: WalletsFixture) -> None:
    """A negative balance refuses a hold of 0, which an empty wallet admits."""
    assert await try_hold(fixture.wallets, "a", 0)
    await add_funds(fixture.database, -1)
    assert not await try_hold(fixture.wallets, "b", 0)


async def test_funds_are_never_spent_twice(fixture: WalletsFixture) -> None:
    """Holds, rows and releases at once: what was admitted is debited, and never more."""
    await add_funds(fixture.database, 40)
    admitted: list[str] = []

    async def answer(n: int) -> None:
        intent = build_intent()
        wallets = fixture.replicas[n % len(fixture.replicas)]
        if await try_hold(wallets, intent.id, 5):
            if n % 3:
                admitted.append(intent.id)
                await fixture.write_row(intent.id, 5)
            else:
                wallets.release(intent.id)

    await asyncio.gather(*map(answer, range(60)))
    balance = await get_balance(fixture.database)
    assert balance == 40 - 5 * len(admitted) >= 0
    assert len(await read_debits(fixture.database)) == len(admitted)


RECORDS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([*UsageSource]), st.integers(0, 10**12)),
    max_size=12,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(records=RECORDS, size=st.integers(1, 5))
async def test_debits_are_the_charges_of_the_rows(
    database: Database, records: list[tuple[int, UsageSource, int]], size: int
) -> None:
    """After records of any rank, order and number, in any batches, the books balance."""
    user_id = f"user {build_intent().id}"  # examples share the database
    intents = [build_intent(user_id=user_id, terms=TERMS) for _ in range(3)]
    outcomes = [
        build_outcome(
            intents[n],
            usage_source=source,
            charge_nano_usd=None if source is UsageSource.UNKNOWN else charge,
        )
        for n, source, charge in records
    ]
    for begin in range(0, len(outcomes), size):
        await write(database, outcomes[begin : begin + size])
    charge_sum = sa.select(sa.func.coalesce(sa.func.sum(request_logs.c.charge_nano_usd), 0))
    async with database.read_session() as session:
        query = charge_sum.where(request_logs.c.user_id == user_id)
        charges = int((await session.execute(query)).scalar_one())
    debits = await read_debits(database, user_id)
    assert -sum(debits.values()) == charges == -await get_balance(database, user_id)


async def test_records_of_any_order_debit_once(database: Database) -> None:
    """A later record adds the difference; a repeated one, or one of a lower rank, nothing."""
    intent = build_intent(user_id="alice", terms=TERMS)

    def build(source: UsageSource, charge: int | None) -> Outcome:
        return build_outcome(intent, usage_source=source, charge_nano_usd=charge)

    estimated, reported = build(UsageSource.ESTIMATED, 9), build(UsageSource.PROVIDER, 4)
    unknown = build(UsageSource.UNKNOWN, None)
    for outcome in (unknown, estimated, unknown, reported, estimated, reported):
        await write(database, [outcome])
    assert await read_debits(database) == {
        f"answer:{intent.id}:1": -9,
        f"answer:{intent.id}:2": 5,
    }
    assert await get_balance(database) == -4
