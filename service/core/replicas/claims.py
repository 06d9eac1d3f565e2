"""Claims of idempotency keys: one answer per key, whichever replicas get its requests.

A replica claims a key before it calls a provider. The row of the claim has the id of the answer,
which names its replica. Claims are durable when `claim` returns, and wait for no other transaction.
They are kept for a day; afterwards the key is in the log.
"""

from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.core.database.engine import Session
from service.core.database.health import DatabaseHealth
from service.core.lazy import LazyModule
from service.core.ports import Claim

if TYPE_CHECKING:
    from service.core.database import postgres_connection
else:
    postgres_connection = LazyModule("service.core.database.postgres_connection")

SECONDS = 5.0  # maximum duration of a statement
TRIES = 3  # of a claim whose predecessor is removed meanwhile
_SETTINGS = {"lock_timeout": "2s"}


class PostgresClaims:
    """See `IdempotencyClaims`. `close` at the end."""

    def __init__(
        self, url: str, *, seconds: float = SECONDS, health: DatabaseHealth | None = None
    ) -> None:
        self._connection = postgres_connection.StatementConnection(
            url, _SETTINGS, seconds=seconds, health=health
        )

    async def claim(self, user_id: str, key: str, claim: Claim) -> Claim:
        """See `IdempotencyClaims.claim`."""
        for _ in range(TRIES):
            # A statement does not see a row that another one inserts meanwhile: the next one does.
            row = await self._connection.fetch_row(
                _CLAIM, user_id, key, claim.body_hash, claim.answer_id
            ) or await self._connection.fetch_row(_FIND, user_id, key)
            if row is not None:
                return Claim(row["body_hash"], row["answer_id"])
        raise RuntimeError("a claim is removed again and again")

    async def take_over(self, user_id: str, key: str, claim: Claim, *, previous_id: str) -> bool:
        """See `IdempotencyClaims.take_over`."""
        row = await self._connection.fetch_row(
            _TAKE_OVER, user_id, key, claim.body_hash, claim.answer_id, previous_id
        )
        return row is not None

    async def free(self, user_id: str, key: str, answer_id: str) -> None:
        """See `IdempotencyClaims.free`."""
        await self._connection.fetch_row(_FREE, user_id, key, answer_id)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._connection.close()


async def remove_old_claims(session: Session) -> int:
    """Remove the claims of more than a day ago, and return their number."""
    return (await session.execute(_REMOVE_OLD)).rowcount


_CLAIM = """
INSERT INTO idempotency_keys (user_id, key, body_hash, answer_id) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id, key) DO NOTHING RETURNING body_hash, answer_id
"""
_FIND = "SELECT body_hash, answer_id FROM idempotency_keys WHERE user_id = $1 AND key = $2"
_TAKE_OVER = """
UPDATE idempotency_keys SET body_hash = $3, answer_id = $4, created_at = now()
WHERE user_id = $1 AND key = $2 AND answer_id = $5 RETURNING answer_id
"""
_FREE = "DELETE FROM idempotency_keys WHERE user_id = $1 AND key = $2 AND answer_id = $3"
_REMOVE_OLD = sa.text("DELETE FROM idempotency_keys WHERE created_at < now() - interval '1 day'")
