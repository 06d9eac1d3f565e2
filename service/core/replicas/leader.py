"""The leader: the replica that does work which is needed once, such as re-indexing.

The row of `leader` names the replica that leads and its term. A replica takes over when the lease
of the leader has expired or the leader has left; each take-over increments the term. A leader that
was stopped for a while still believes that it leads. Therefore every transaction of its work begins
by locking the row of its own term (`Leadership.fence`): after a take-over there is none, so nothing
is written; and a take-over waits for such a transaction.
"""

import sqlalchemy as sa

from service.core.database.engine import Database, Session
from service.core.errors import DatabaseUnavailable
from service.core.replicas.slots import SlotLease


class Leadership:
    """The leadership of one replica."""

    def __init__(self, database: Database, lease: SlotLease) -> None:
        self._database, self._lease = database, lease
        self._term: int | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this replica leads, as far as it knows."""
        return self._term is not None and self._lease.is_held

    @property
    def term(self) -> int | None:
        """The number of the take-over that made this replica the leader."""
        return self._term

    async def campaign(self) -> None:
        """Find out whether this replica leads, and take over if nobody does.

        Raises `DatabaseUnavailable`.
        """
        lease = self._lease
        values = {
            "slot": lease.slot,
            "incarnation": lease.incarnation,
            "seconds": lease.lease_seconds,
        }
        async with self._database.read_session() as session:
            leader = (await session.execute(_READ, values)).one()
        self._term = leader.term if leader.is_mine else None
        if leader.is_alive or not lease.is_held:
            return
        async with self._database.transaction() as session:
            self._term = (await session.execute(_TAKE_OVER, values)).scalar()

    async def resign(self) -> None:
        """Let another replica take over at once."""
        if self._term is not None:
            term, self._term = self._term, None
            async with self._database.transaction() as session:
                await session.execute(_RESIGN, {"term": term})

    async def fence(self, session: Session) -> None:
        """Begin a transaction of the leader's work.

        Raises `DatabaseUnavailable` if another replica leads.
        """
        leads = self._term is not None and (
            (await session.execute(_FENCE, {"term": self._term})).scalar() is not None
        )
        if not leads:
            self._term = None
            raise DatabaseUnavailable("another replica does this work")


_READ = sa.text(
    """
SELECT term, slot = :slot AND incarnation = :incarnation AS is_mine, EXISTS (
    SELECT 1 FROM replicas
    WHERE replicas.slot = leader.slot AND replicas.incarnation = leader.incarnation
        AND state = 'serving'
        AND seen_at > clock_timestamp() - make_interval(secs => :seconds)
) AS is_alive
FROM leader WHERE id = 0
"""
)
_TAKE_OVER = sa.text(
    """
UPDATE leader SET term = term + 1, slot = :slot, incarnation = :incarnation
WHERE id = 0 AND NOT EXISTS (
    SELECT 1 FROM replicas
    WHERE replicas.slot = leader.slot AND replicas.incarnation = leader.incarnation
        AND state = 'serving'
        AND seen_at > clock_timestamp() - make_interval(secs => :seconds)
)
RETURNING term
"""
)
_RESIGN = sa.text("UPDATE leader SET slot = -1, incarnation = '' WHERE id = 0 AND term = :term")
_FENCE = sa.text("SELECT 1 FROM leader WHERE id = 0 AND term = :term FOR SHARE")
