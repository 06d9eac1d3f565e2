"""Slots: the numbers of the replicas that share a PostgreSQL database.

A replica leases a slot for `LEASE_SECONDS` and renews the lease; the time is that of the database.
The ids of its answers contain the slot, so that every replica finds the owner of an answer. A data
directory keeps its slot: after a restart, the records in its journal still belong to it. A slot is
given to another data directory only after it has been free for a day, when the leader removes it.

A lost lease stops work that only one replica may do. It does not stop answering: no other replica
gets the slot so soon. A replica whose data directory was copied, and started elsewhere, learns from
`renew` that its slot was taken, and must end.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import Database, Session
from service.core.database.files import create_private_directory, create_private_file
from service.core.encoding import utc_now
from service.core.errors import SettingsInvalid

SLOTS = 65_536
LEASE_SECONDS = 15.0
RENEW_SECONDS = 5.0
REUSE_SECONDS = 86_400
_NAME_FILE = "replica"  # in the data directory


class ReplicaState(StrEnum):
    """The state of a slot."""

    SERVING = "serving"  # while its lease is renewed
    LEFT = "left"  # ended, with all its rows written
    LOST = "lost"  # not seen for `KOTAE_LOST_SECONDS`; its open answers have rows


class Replica(msgspec.Struct, frozen=True):
    """A slot as the database has it. `is_alive`: its lease has not expired.

    `address`: where other replicas reach it; empty if it has none.
    """

    slot: int
    address: str
    state: ReplicaState
    is_alive: bool


class SlotLost(Exception):
    """Another process has the slot of this one."""


class SlotLease:
    """The lease of one replica. `name`: of its data directory; see `read_name`."""

    def __init__(
        self,
        database: Database,
        name: str,
        address: str = "",
        *,
        monotonic: Callable[[], float] = time.monotonic,
        lease_seconds: float = LEASE_SECONDS,
        slots: int = SLOTS,
    ) -> None:
        self._database, self._name, self.address = database, name, address
        self._monotonic, self.lease_seconds, self._slots = monotonic, lease_seconds, slots
        self._held_until = 0.0
        self.incarnation = secrets.token_hex(8)
        self.since = utc_now()  # by the clock that the ids of this replica have
        self.slot = -1

    @property
    def is_held(self) -> bool:
        """Whether the lease has not expired, by the clock of this process."""
        return self._monotonic() < self._held_until

    async def acquire(self) -> int:
        """Acquire the slot of the data directory, or a new one.

        Raises `SettingsInvalid` if there is none, and `DatabaseUnavailable`.
        """
        began = self._monotonic()
        async with self._database.transaction() as session:
            self.slot = await self._choose_slot(session)
            await session.execute(_ACQUIRE, self._values())
        self._held_until = began + self.lease_seconds
        return self.slot

    async def _choose_slot(self, session: Session) -> int:
        values = {"name": self._name, "last": self._slots - 1}
        for query in (_FIND, _UNUSED):
            slot = (await session.execute(query, values)).scalar()
            if slot is not None:
                return int(slot)
        raise SettingsInvalid(f"all {self._slots} slots of the database are in use")

    async def renew(self) -> None:
        """Renew the lease. Raises `SlotLost` and `DatabaseUnavailable`."""
        began = self._monotonic()
        async with self._database.transaction() as session:
            renewed = (await session.execute(_RENEW, self._values())).scalar()
        if renewed is None:
            self._held_until = 0.0
            raise SlotLost(f"another process has the slot {self.slot}")
        self._held_until = began + self.lease_seconds

    async def release(self) -> None:
        """Declare that this replica has ended and has written all its rows."""
        self._held_until = 0.0
        async with self._database.transaction() as session:
            await session.execute(_RELEASE, self._values())

    async def list_replicas(self) -> dict[int, Replica]:
        """Return all slots that were used in the last day. Raises `DatabaseUnavailable`."""
        async with self._database.read_session() as session:
            rows = (await session.execute(_LIST, {"seconds": self.lease_seconds})).mappings()
            return {row["slot"]: _read_replica(row) for row in rows}

    def _values(self) -> dict[str, Any]:
        return {
            "slot": self.slot,
            "name": self._name,
            "incarnation": self.incarnation,
            "address": self.address,
            "since": self.since,
        }


async def remove_old_slots(session: Session) -> None:
    """Remove the slots of replicas that left or were lost a day ago."""
    await session.execute(_REMOVE_OLD, {"seconds": REUSE_SECONDS})


def read_name(data_dir: Path) -> str:
    """Return the name of a data directory, which is created with its first replica."""
    path = data_dir / _NAME_FILE
    create_private_directory(data_dir)
    create_private_file(path)
    if name := path.read_text().strip():
        return name
    path.write_text(name := secrets.token_hex(16))
    return name


def _read_replica(row: Mapping[Any, Any]) -> Replica:
    return Replica(
        slot=row["slot"],
        address=row["address"],
        state=ReplicaState(row["state"]),
        is_alive=row["is_alive"],
    )


_FIND = sa.text("SELECT slot FROM replicas WHERE name = :name")
_UNUSED = sa.text(
    "SELECT min(number) FROM generate_series(0, :last) AS numbers(number)"
    " WHERE NOT EXISTS (SELECT 1 FROM replicas WHERE slot = number)"
)
_REMOVE_OLD = sa.text(
    "DELETE FROM replicas WHERE state <> 'serving'"
    " AND seen_at < clock_timestamp() - make_interval(secs => :seconds)"
)
_ACQUIRE = sa.text(
    """
INSERT INTO replicas (slot, name, incarnation, address, since, seen_at, state)
VALUES (:slot, :name, :incarnation, :address, :since, clock_timestamp(), 'serving')
ON CONFLICT (slot) DO UPDATE SET name = excluded.name, incarnation = excluded.incarnation,
    address = excluded.address, since = excluded.since, seen_at = excluded.seen_at,
    state = excluded.state
"""
)
_RENEW = sa.text(
    "UPDATE replicas SET seen_at = clock_timestamp(), address = :address, state = 'serving'"
    " WHERE slot = :slot AND incarnation = :incarnation RETURNING slot"
)
_RELEASE = sa.text(
    "UPDATE replicas SET seen_at = clock_timestamp(), state = 'left'"
    " WHERE slot = :slot AND incarnation = :incarnation"
)
_LIST = sa.text(
    "SELECT slot, address, state, state = 'serving'"
    " AND seen_at > clock_timestamp() - make_interval(secs => :seconds) AS is_alive FROM replicas"
)
