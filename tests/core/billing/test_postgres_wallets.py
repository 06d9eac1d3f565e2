"""Holds of wallets in PostgreSQL: what the contract of all implementations does not contain."""

import asyncio

import pytest
import sqlalchemy as sa

from service.core.billing.postgres_wallets import PostgresWallets
from tests.postgres import PostgresServer, temporary_database

pytestmark = pytest.mark.slow


async def test_unexpected_errors_reach_the_callers(postgres: PostgresServer) -> None:
    """A statement that fails keeps nobody waiting, and the next one is sent."""
    async with temporary_database(postgres) as database:
        wallets = PostgresWallets(database._url, database, ttl_seconds=60)
        async with database.transaction() as session:
            await session.execute(
                sa.text("ALTER FUNCTION kotae_wallet_hold RENAME TO kotae_wallet_hold_absent")
            )
        async with asyncio.timeout(10):
            for name in ("a", "b"):
                with pytest.raises(Exception, match="kotae_wallet_hold"):
                    await wallets.hold(name, "alice", 0)
        await wallets.close()
