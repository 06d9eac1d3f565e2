"""Merging of posting rows in PostgreSQL. Each document adds a row for each of its terms.

A frequent term of many small documents has as many rows, which take ten times the space of their
ids and of the time to read them. Therefore rows of a term are joined when uploads pause: up to
`ROWS_AT_ONCE` per transaction, each of which takes some ten milliseconds, so that other writers
wait no longer. The content does not change, nor does `index_scopes`.

Merging reads the whole index, so it happens only after enough changes (`CHANGED_SHARE`).
"""

import asyncio
from collections.abc import AsyncIterator

import sqlalchemy as sa

from service.core.database.engine import Database

CHANGED_SHARE = 0.1  # of the documents: minimum number of changes for a merge
CHANGES_MIN = 50
CHUNKS_PER_ROW = 500
ROWS_AT_ONCE = 5_000
TOKENS_AT_ONCE = 2_000  # examined
PAUSE_SECONDS = 0.05  # between two transactions, for other writers


async def needs_merge(database: Database, changes: int) -> bool:
    """Return whether a merge is worthwhile. Raises `DatabaseUnavailable`.

    `changes`: of the index since the last merge.
    """
    async with database.read_session() as session:
        documents = (await session.execute(_DOCUMENTS)).scalar_one()
    return changes >= max(CHANGES_MIN, CHANGED_SHARE * int(documents))


async def merge_postings(
    database: Database,
    pause_seconds: float = PAUSE_SECONDS,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> int:
    """Join rows, and return how many there are fewer.

    Raises `DatabaseUnavailable`; completed steps are kept.
    """
    removed, tokens, rows = 0, list[str](), 0
    async for token, count in _list_scattered(database):
        if count > rows_at_once:
            removed += await _merge_in_parts(database, token, pause_seconds, rows_at_once)
            continue
        tokens.append(token)
        rows += count
        if rows >= rows_at_once:
            removed += await _merge_tokens(database, tokens)
            tokens, rows = [], 0
            await asyncio.sleep(pause_seconds)
    return removed + (await _merge_tokens(database, tokens) if tokens else 0)


async def _list_scattered(database: Database) -> AsyncIterator[tuple[str, int]]:
    """Yield the tokens with at least twice the rows that they need, and the numbers of rows."""
    after = ""
    while True:
        async with database.read_session() as session:
            values = {"after": after, "limit": TOKENS_AT_ONCE, "size": CHUNKS_PER_ROW}
            tokens = (await session.execute(_TOKENS, values)).all()
        for token, count, needed in tokens:
            if count >= 2 * needed:
                yield token, count
        if len(tokens) < TOKENS_AT_ONCE:
            return
        after = tokens[-1].token


async def _merge_tokens(database: Database, tokens: list[str]) -> int:
    async with database.transaction() as session:
        values = {"tokens": tokens, "size": CHUNKS_PER_ROW}
        return int((await session.execute(_MERGE, values)).scalar_one())


async def _merge_in_parts(
    database: Database, token: str, pause_seconds: float, rows_at_once: int
) -> int:
    """Join the rows of a frequent token, some at a time."""
    removed, after = 0, -1
    while True:
        values = {"token": token, "after": after, "rows": rows_at_once, "size": CHUNKS_PER_ROW}
        async with database.transaction() as session:
            last, fewer = (await session.execute(_MERGE_PART, values)).one()
        if last is None:
            return removed
        removed, after = removed + fewer, last
        await asyncio.sleep(pause_seconds)


_DOCUMENTS = sa.text("SELECT count(*) FROM documents")
_TOKENS = sa.text(
    """
    SELECT token, count(*), ceil(sum(chunks)::numeric / :size) FROM postings
    WHERE token > :after GROUP BY token ORDER BY token LIMIT :limit
    """
)
_MERGE = sa.text(
    """
    WITH old AS (
        DELETE FROM postings WHERE token = ANY(:tokens) RETURNING token, ids
    ), occurrences AS (
        SELECT token, id, dense_rank() OVER (PARTITION BY token ORDER BY id) AS n
        FROM old, unnest(ids) AS id
    ), new AS (
        INSERT INTO postings (token, first, last, chunks, ids)
        SELECT token, min(id), max(id), count(DISTINCT id), array_agg(id ORDER BY id)
        FROM occurrences GROUP BY token, (n - 1) / :size
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM old) - (SELECT count(*) FROM new)
    """
).bindparams(sa.bindparam("tokens", type_=sa.ARRAY(sa.Text)))
_MERGE_PART = sa.text(
    """
    WITH part AS (
        SELECT token, first FROM postings WHERE token = :token AND first > :after
        ORDER BY first LIMIT :rows
    ), old AS (
        DELETE FROM postings USING part
        WHERE postings.token = part.token AND postings.first = part.first
        RETURNING postings.token, postings.ids
    ), occurrences AS (
        SELECT token, id, dense_rank() OVER (ORDER BY id) AS n FROM old, unnest(ids) AS id
    ), new AS (
        INSERT INTO postings (token, first, last, chunks, ids)
        SELECT token, min(id), max(id), count(DISTINCT id), array_agg(id ORDER BY id)
        FROM occurrences GROUP BY token, (n - 1) / :size
        RETURNING 1
    )
    SELECT (SELECT max(first) FROM part), (SELECT count(*) FROM old) - (SELECT count(*) FROM new)
    """
)
