"""Claims of idempotency keys in PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.ports import Claim
from service.core.replicas.claims import PostgresClaims, remove_old_claims
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow


@pytest.fixture
async def claims(database: Database) -> AsyncIterator[list[PostgresClaims]]:
    """The claims of four replicas."""
    claims = [PostgresClaims(database._url, seconds=20) for _ in range(4)]
    yield claims
    for one in claims:
        await one.close()


async def test_one_of_many_claims_is_in_force(claims: list[PostgresClaims]) -> None:
    """Of 800 racing claims for 40 keys, one per key is in force, and every racer learns it."""
    racers = [(f"key {n % 40}", Claim("hash", f"answer {n}")) for n in range(800)]
    results = await asyncio.gather(
        *(claims[n % 4].claim("alice", key, own) for n, (key, own) in enumerate(racers))
    )

    winners = {
        (key, own.answer_id)
        for (key, own), claim in zip(racers, results, strict=True)
        if claim == own
    }
    told = {(key, claim.answer_id) for (key, _), claim in zip(racers, results, strict=True)}
    assert len(winners) == 40
    assert told == winners


async def test_a_key_belongs_to_one_user(claims: list[PostgresClaims]) -> None:
    """Other users may use the same key."""
    first, second = Claim("h", "a"), Claim("h", "b")
    await claims[0].claim("alice", "key", first)

    assert await claims[1].claim("bob", "key", second) == second


async def test_a_freed_key_can_be_claimed(claims: list[PostgresClaims]) -> None:
    """Only its owner frees a claim."""
    own, other = Claim("h", "a"), Claim("h", "b")
    await claims[0].claim("alice", "key", own)
    await claims[1].free("alice", "key", "b")
    assert await claims[1].claim("alice", "key", other) == own
    await claims[0].free("alice", "key", "a")

    assert await claims[1].claim("alice", "key", other) == other


async def test_one_takes_over_an_abandoned_claim(claims: list[PostgresClaims]) -> None:
    """Of several replicas that find it abandoned, one gets it."""
    await claims[0].claim("alice", "key", Claim("h", "lost"))
    results = await asyncio.gather(
        *(
            one.take_over("alice", "key", Claim("h", f"{n}"), previous_id="lost")
            for n, one in enumerate(claims)
        )
    )

    assert sum(results) == 1


async def test_claims_are_removed_after_a_day(
    claims: list[PostgresClaims], database: Database
) -> None:
    """Their answers are in the log by then."""
    await claims[0].claim("alice", "old", Claim("h", "a"))
    await claims[0].claim("alice", "new", Claim("h", "b"))
    async with database.transaction() as session:
        await session.execute(
            sa.text("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'"
                    " WHERE key = 'old'")
        )  # fmt: skip
        removed = await remove_old_claims(session)

    assert removed == 1


async def test_an_unreachable_database_is_reported(postgres: PostgresServer) -> None:
    """It is unknown whether a key is new."""
    claims = PostgresClaims(postgres.build_url("absent"))
    with pytest.raises(DatabaseUnavailable):
        await claims.claim("alice", "key", Claim("h", "a"))
