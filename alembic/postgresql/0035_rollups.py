"""rollups by quarter of an hour instead of totals by day, computed from the rows

Revision ID: 0035
Revises: 0034
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import sqlalchemy as sa

from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE rollup_groups (
    id bigint NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    key_id text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    endpoint text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    usage_source text COLLATE "C" NOT NULL,
    CONSTRAINT pk_rollup_groups PRIMARY KEY (id)
)
""",
    """
CREATE TABLE rollups (
    quarter integer NOT NULL,
    group_id bigint NOT NULL,
    answers bigint NOT NULL,
    attempts bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost_nano_usd bigint NOT NULL,
    unpriced bigint NOT NULL,
    CONSTRAINT pk_rollups PRIMARY KEY (quarter, group_id)
)
""",
    """
CREATE TABLE latency_counts (
    quarter integer NOT NULL,
    group_id bigint NOT NULL,
    kind integer NOT NULL,
    bin integer NOT NULL,
    answers bigint NOT NULL,
    CONSTRAINT pk_latency_counts PRIMARY KEY (quarter, group_id, kind, bin)
)
""",
)
# Answers count for the model that was asked for, attempts for that of the attempt.
ROLLUPS = """
SELECT quarter, user_id, key_id, model, provider, endpoint, status, usage_source, sum(answers),
    sum(attempts), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
    sum(reasoning_tokens), sum(cost_nano_usd), sum(unpriced)
FROM (
    SELECT CAST(floor(extract(epoch FROM created_at) / 900) AS integer) AS quarter,
        user_id, coalesce(key_id, '') AS key_id, model, coalesce(provider, '') AS provider,
        endpoint, status, usage_source, 1 AS answers, 0 AS attempts, 0 AS prompt_tokens,
        0 AS completion_tokens, 0 AS cached_tokens, 0 AS reasoning_tokens, 0 AS cost_nano_usd,
        CASE WHEN cost_nano_usd IS NULL THEN 1 ELSE 0 END AS unpriced
    FROM request_logs
    UNION ALL
    SELECT CAST(floor(extract(epoch FROM created_at) / 900) AS integer),
        user_id, coalesce(key_id, ''), coalesce(provider_model, model), coalesce(provider, ''),
        endpoint, status, usage_source, 0, attempts, coalesce(prompt_tokens, 0),
        coalesce(completion_tokens, 0), coalesce(cached_tokens, 0), coalesce(reasoning_tokens, 0),
        coalesce(cost_nano_usd, 0), 0
    FROM request_logs
    WHERE NOT EXISTS (SELECT 1 FROM attempts WHERE answer_id = request_logs.id)
    UNION ALL
    SELECT CAST(floor(extract(epoch FROM r.created_at) / 900) AS integer),
        r.user_id, coalesce(r.key_id, ''), a.model, a.provider, r.endpoint, r.status,
        r.usage_source, 0, 1,
        CASE WHEN r.prompt_tokens IS NULL THEN 0 ELSE coalesce(a.prompt_tokens, 0) END,
        CASE WHEN r.prompt_tokens IS NULL THEN 0 ELSE coalesce(a.completion_tokens, 0) END,
        CASE WHEN r.prompt_tokens IS NULL THEN 0 ELSE coalesce(a.cached_tokens, 0) END,
        CASE WHEN r.prompt_tokens IS NULL THEN 0 ELSE coalesce(a.reasoning_tokens, 0) END,
        CASE WHEN r.cost_nano_usd IS NULL THEN 0 ELSE coalesce(a.cost_nano_usd, 0) END, 0
    FROM request_logs r JOIN attempts a ON a.answer_id = r.id
) AS counted
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""
LATENCIES = """
SELECT quarter, user_id, key_id, model, provider, endpoint, status, usage_source, kind,
    (SELECT max(n) FROM latency_bins WHERE first_ms <= ms) AS bin, count(*)
FROM (
    SELECT CAST(floor(extract(epoch FROM created_at) / 900) AS integer) AS quarter,
        user_id, coalesce(key_id, '') AS key_id, model, coalesce(provider, '') AS provider,
        endpoint, status, usage_source, 0 AS kind, greatest(0, response_time_ms) AS ms
    FROM request_logs
    UNION ALL
    SELECT CAST(floor(extract(epoch FROM created_at) / 900) AS integer),
        user_id, coalesce(key_id, ''), model, coalesce(provider, ''), endpoint, status,
        usage_source, 1, greatest(0, first_token_ms)
    FROM request_logs WHERE first_token_ms IS NOT NULL
) AS listed
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
"""
DAILY_TOTALS = (
    """
CREATE TABLE daily_totals (
    day text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    endpoint text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    usage_source text COLLATE "C" NOT NULL,
    answers bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost_nano_usd bigint NOT NULL,
    unpriced bigint NOT NULL,
    CONSTRAINT pk_daily_totals
        PRIMARY KEY (day, user_id, endpoint, model, status, usage_source)
)
""",
    """
INSERT INTO daily_totals
SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), user_id, endpoint, model, status,
    usage_source, count(*),
    sum(coalesce(prompt_tokens, 0)), sum(coalesce(completion_tokens, 0)),
    sum(coalesce(cached_tokens, 0)), sum(coalesce(reasoning_tokens, 0)),
    sum(coalesce(cost_nano_usd, 0)), sum(CASE WHEN cost_nano_usd IS NULL THEN 1 ELSE 0 END)
FROM request_logs GROUP BY 1, 2, 3, 4, 5, 6
""",
)
DIMENSIONS = ("user_id", "key_id", "model", "provider", "endpoint", "status", "usage_source")
COUNTS = (
    "answers",
    "attempts",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
    "unpriced",
)
_BATCH = 1000


def list_bounds() -> list[int]:
    """The first millisecond of each bin of latencies."""
    bounds = list(range(26))
    while bounds[-1] < 10_000_000:
        bounds.append(max(bounds[-1] + 1, int(bounds[-1] * 1.04)))
    return bounds


def read_sums(
    query: str, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The dimensions of each sum, and the row of its table."""
    for quarter, *values in op.get_bind().exec_driver_sql(query):
        group = tuple(values[: len(DIMENSIONS)])
        digest = blake2b("\0".join(group).encode(), digest_size=8).digest()
        row = {"quarter": quarter, "group_id": int.from_bytes(digest, "big") >> 1}
        numbers = [int(value) for value in values[len(DIMENSIONS) :]]
        yield group, row | dict(zip(names, numbers, strict=True))


def fill(table: str, query: str, names: tuple[str, ...], known: set[int]) -> None:
    """Insert sums, and those of their groups that are not known."""
    connection = op.get_bind()
    columns = [sa.column(name) for name in ("quarter", "group_id", *names)]
    insert = sa.insert(sa.table(table, *columns))
    group_columns = [sa.column(name) for name in ("id", *DIMENSIONS)]
    insert_group = sa.insert(sa.table("rollup_groups", *group_columns))
    sums = read_sums(query, names)
    while batch := list(islice(sums, _BATCH)):
        groups = {
            row["group_id"]: dict(zip(DIMENSIONS, group, strict=True))
            for group, row in batch
            if row["group_id"] not in known
        }
        known.update(groups)
        if groups:
            connection.execute(insert_group, [{"id": id_, **row} for id_, row in groups.items()])
        connection.execute(insert, [row for _, row in batch])


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    connection = op.get_bind()
    op.execute("CREATE TEMPORARY TABLE latency_bins (first_ms integer PRIMARY KEY, n integer)")
    bins = sa.insert(sa.table("latency_bins", sa.column("first_ms"), sa.column("n")))
    connection.execute(bins, [{"first_ms": first, "n": n} for n, first in enumerate(list_bounds())])
    known: set[int] = set()
    fill("rollups", ROLLUPS, COUNTS, known)
    fill("latency_counts", LATENCIES, ("kind", "bin", "answers"), known)
    op.execute("DROP TABLE latency_bins")
    op.execute("DROP TABLE daily_totals")


def downgrade() -> None:
    for statement in DAILY_TOTALS:
        op.get_bind().exec_driver_sql(statement)
    op.drop_table("latency_counts")
    op.drop_table("rollups")
    op.drop_table("rollup_groups")
