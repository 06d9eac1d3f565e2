"""Partitions of the log in PostgreSQL: one per month (UTC), by range of the ids.

They are created some months ahead. A row of a month without a partition goes to
`request_logs_default`, so none is lost; its partition takes it over when it is created.
"""

from datetime import UTC, datetime
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.core.encoding import compute_first_id

MONTHS_AHEAD = 3
_EXISTS = sa.text("SELECT to_regclass(:name) IS NOT NULL")
_STORED = "FROM request_logs_default WHERE id >= '{first}' AND id < '{last}'"
# The default partition is checked for rows of the new one, so these are moved.
_STATEMENTS = (
    f"CREATE TEMPORARY TABLE moved_logs ON COMMIT DROP AS SELECT * {_STORED}",
    f"DELETE {_STORED}",
    "CREATE TABLE {name} PARTITION OF request_logs FOR VALUES FROM ('{first}') TO ('{last}')",
    "INSERT INTO request_logs SELECT * FROM moved_logs",
    "DROP TABLE moved_logs",
)


def list_months(now: datetime, months_ahead: int) -> list[datetime]:
    """The first moments of the month of `now`, of the next months, and of the one after them."""
    number = now.year * 12 + now.month - 1
    return [
        datetime(n // 12, n % 12 + 1, 1, tzinfo=UTC)
        for n in range(number, number + months_ahead + 2)
    ]


async def create_partitions(
    session: AsyncConnection, now: datetime, *, months_ahead: int = MONTHS_AHEAD
) -> list[str]:
    """Create the missing partitions of this month and the next ones, and return their names.

    The transaction locks the whole log from then on, for milliseconds unless rows are moved.
    """
    months = list_months(now, months_ahead)
    created: list[str] = []
    for begin, end in pairwise(months):
        name = f"request_logs_{begin:%Y_%m}"
        if not (await session.execute(_EXISTS, {"name": name})).scalar_one():
            values = {
                "name": name,
                "first": compute_first_id(begin),
                "last": compute_first_id(end),
            }
            for statement in _STATEMENTS:  # DDL has no parameters; these values are ours
                await session.execute(sa.text(statement.format(**values)))
            created.append(name)
    return created


async def count_default_rows(session: AsyncConnection) -> int:
    """The number of rows of months without a partition."""
    query = sa.text("SELECT count(*) FROM request_logs_default")
    return int((await session.execute(query)).scalar_one())
