"""Copies the data of one database to another one, from SQLite to PostgreSQL.

Rows are copied in batches, in the order of their primary keys. A batch and the position after it
are one transaction of the target, so an interrupted copy continues where it ended, and no row is
copied twice. The positions are in a table of the target that exists only while a copy is unfinished
(`data_copy`), with the name of the source: another source cannot continue it. Only tables of Kotae
are read and written.

JSON values are copied as texts, so nothing is lost in a conversion. PostgreSQL stores no NUL
characters; they become U+FFFD, as in new texts. The search index is built by the triggers of the
target. Sequences continue after the highest number.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.database.engine import Database, ReadSession, Session
from service.core.database.partitions import create_partitions
from service.core.database.tables import (
    api_keys,
    attempts,
    audit_log,
    billing_customers,
    billing_events,
    billing_inbox,
    billing_payers,
    budget_alerts,
    budgets,
    chunks,
    documents,
    index_scopes,
    latency_counts,
    ledger_entries,
    original_parts,
    plans,
    quota_totals,
    receipt_keys,
    receipts,
    request_logs,
    rollup_groups,
    rollups,
    sessions,
    users,
    vectors,
    wallets,
)
from service.core.database.upserts import insert_into
from service.core.encoding import read_id_time
from service.core.errors import SettingsInvalid

# In an order that satisfies foreign keys, and the number of rows of a batch. Scopes precede the
# documents whose trigger would create them.
BATCHES = {
    plans: 500,
    budgets: 500,
    budget_alerts: 500,
    billing_customers: 500,
    billing_events: 500,
    billing_inbox: 500,
    billing_payers: 500,
    ledger_entries: 500,
    wallets: 500,
    users: 500,
    api_keys: 500,
    sessions: 500,
    audit_log: 500,
    index_scopes: 500,
    documents: 50,
    original_parts: 10,
    chunks: 200,
    vectors: 500,
    quota_totals: 500,
    receipt_keys: 500,
    receipts: 500,
    attempts: 500,
    rollup_groups: 500,
    rollups: 500,
    latency_counts: 500,
    request_logs: 500,
}
_SEQUENCES = {request_logs.c.seq: "request_logs_seq", chunks.c.id: "chunks_id_seq"}
_SEQUENCES[index_scopes.c.id] = "index_scopes_id_seq"
_SEQUENCES[ledger_entries.c.seq] = "ledger_entries_seq_seq"
_COUNTED_BY_TRIGGERS = ("chunks", "terms")
_CREATE = """
CREATE TABLE IF NOT EXISTS data_copy (
    name text PRIMARY KEY, source text NOT NULL, position text
)
"""


class TableDifference(msgspec.Struct, frozen=True):
    """A table whose copy has another number of rows."""

    table: str
    source: int
    target: int


async def count_rows(session: ReadSession) -> dict[str, int]:
    """The number of rows of each table."""
    counts = {}
    for table in BATCHES:
        query = sa.select(sa.func.count()).select_from(table)
        counts[table.name] = int((await session.execute(query)).scalar_one())
    return counts


async def copy_data(
    source: Database, target: Database, name: str, advance: Callable[[int], None]
) -> None:
    """Copy all rows, or continue a copy of the source with this name.

    `advance` gets the number of rows of each batch. Raises `SettingsInvalid` if the target has
    other data, and `DatabaseUnavailable`.
    """
    await _begin(target, name)
    await _create_partitions(source, target)
    for table, batch_rows in BATCHES.items():
        while count := await _copy_batch(source, target, table, batch_rows):
            advance(count)


async def finish_copy(target: Database) -> None:
    """Set the sequences, and forget the positions: the copy is complete."""
    async with target.transaction() as session:
        for column, sequence in _SEQUENCES.items():
            highest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
            await session.execute(sa.select(sa.func.setval(sequence, highest, False)))
        await session.exec_driver_sql("DROP TABLE data_copy")


async def compare_counts(source: Database, target: Database) -> list[TableDifference]:
    """The tables that differ in their number of rows."""
    async with source.read_session() as session:
        expected = await count_rows(session)
    async with target.read_session() as session:
        counts = await count_rows(session)
    return [
        TableDifference(name, count, counts[name])
        for name, count in expected.items()
        if count != counts[name]
    ]


async def count_copied(target: Database) -> int:
    """The number of rows that an unfinished copy has copied."""
    async with target.read_session() as session:
        exists = (await session.execute(sa.text("SELECT to_regclass('data_copy')"))).scalar()
        return sum((await count_rows(session)).values()) - 1 if exists else 0


async def _begin(target: Database, name: str) -> None:
    async with target.transaction() as session:
        await session.exec_driver_sql(_CREATE)
        rows = await session.execute(sa.text("SELECT source FROM data_copy LIMIT 1"))
        begun = rows.scalar()
        if begun is None:
            await _require_empty(session)
        elif begun != name:
            raise SettingsInvalid(
                f"the target has an unfinished copy of {begun}: continue it, or use an empty one"
            )
        await session.execute(
            sa.text("INSERT INTO data_copy VALUES ('', :name, NULL) ON CONFLICT DO NOTHING"),
            {"name": name},
        )


async def _require_empty(session: Session) -> None:
    for table, count in (await count_rows(session)).items():
        if count > (table == index_scopes.name):  # the scope of shared documents always exists
            raise SettingsInvalid(
                f"the target is not empty: {table} has {count} rows. Use a new database, and run "
                "`kotae migrate`"
            )


async def _create_partitions(source: Database, target: Database) -> None:
    """Create the partitions of the months that have rows."""
    ids = request_logs.c.id
    async with source.read_session() as session:
        ends = (await session.execute(sa.select(sa.func.min(ids), sa.func.max(ids)))).one()
    times = [moment for value in ends if value and (moment := read_id_time(value))]
    async with target.transaction() as session:
        for month in _list_months(times):
            await create_partitions(session, month, months_ahead=0)


def _list_months(ends: list[datetime]) -> Iterator[datetime]:
    """The months from the first to the last of these times."""
    for first, last in pairwise(ends):
        number = first.year * 12 + first.month - 1
        while number <= last.year * 12 + last.month - 1:
            yield first.replace(year=number // 12, month=number % 12 + 1, day=1)
            number += 1


async def _copy_batch(source: Database, target: Database, table: sa.Table, rows_max: int) -> int:
    """Copy the next rows of a table, and return their number."""
    key = list(table.primary_key)
    async with target.transaction() as session:
        position = await _read_position(session, table)
        query = sa.select(*map(_read_raw, table.c)).order_by(*key).limit(rows_max)
        if position is not None:
            query = query.where(sa.tuple_(*key) > sa.tuple_(*map(sa.literal, position)))
        async with source.read_session() as reading:
            rows = [dict(row) for row in (await reading.execute(query)).mappings()]
        if rows:
            position = [rows[-1][column.name] for column in key]
            await session.execute(_build_insert(session, table), [*map(_prepare_row, rows)])
            await _store_position(session, table, position)
    return len(rows)


async def _read_position(session: Session, table: sa.Table) -> list[Any] | None:
    query = sa.text("SELECT position FROM data_copy WHERE name = :name")
    stored = (await session.execute(query, {"name": table.name})).scalar()
    return None if stored is None else msgspec.json.decode(stored)


async def _store_position(session: Session, table: sa.Table, position: list[Any]) -> None:
    statement = """
    INSERT INTO data_copy SELECT :name, source, :position FROM data_copy WHERE name = ''
    ON CONFLICT (name) DO UPDATE SET position = excluded.position
    """
    encoded = msgspec.json.encode(position).decode()
    await session.execute(sa.text(statement), {"name": table.name, "position": encoded})


def _read_raw(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column to select; JSON as the text that is stored."""
    if isinstance(column.type, sa.JSON):
        return sa.type_coerce(column, sa.Text).label(column.name)
    return column


def _build_insert(session: Session, table: sa.Table) -> sa.Insert:
    insert = insert_into(session, table).values(
        {
            column.name: sa.cast(sa.bindparam(column.name, type_=sa.Text), column.type)
            for column in table.c
            if isinstance(column.type, sa.JSON)
        }
        | {
            column.name: sa.bindparam(column.name, type_=column.type)
            for column in table.c
            if not isinstance(column.type, sa.JSON)
        }
    )
    if table is not index_scopes:
        return insert
    # The first one exists; the triggers count again.
    names = [name for name in table.c.keys() if name != "id"]  # noqa: SIM118 - of columns
    return insert.on_conflict_do_update(
        index_elements=["id"], set_={name: insert.excluded[name] for name in names}
    )


def _prepare_row(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
        for name, value in row.items()
    }
    if set(values) == set(index_scopes.c.keys()):
        values |= dict.fromkeys(_COUNTED_BY_TRIGGERS, 0)
    return values
