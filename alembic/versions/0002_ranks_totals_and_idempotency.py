"""ranks, totals and idempotency

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# ADD COLUMN instead of a batch operation, which would copy the log.
TOTALS_OF_WHAT_IS_THERE = """
INSERT INTO daily_totals
SELECT substr(created_at, 1, 10), user_id, endpoint, model, status, usage_source, count(*),
       coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
       coalesce(sum(cached_tokens), 0), coalesce(sum(reasoning_tokens), 0),
       coalesce(sum(cost_nano_usd), 0), sum(cost_nano_usd IS NULL)
FROM request_logs GROUP BY 1, 2, 3, 4, 5, 6
"""


def upgrade() -> None:
    op.add_column(
        "request_logs", sa.Column("rank", sa.Integer(), nullable=False, server_default="2")
    )
    op.add_column(
        "request_logs", sa.Column("idempotency_key", sa.String(length=255), nullable=True)
    )
    op.add_column("request_logs", sa.Column("body_hash", sa.String(length=64), nullable=True))
    op.create_index(
        "uq_request_logs_user_id_idempotency_key",
        "request_logs",
        ["user_id", "idempotency_key"],
        unique=True,
    )
    op.execute(
        "UPDATE request_logs SET rank = "
        "CASE usage_source WHEN 'unknown' THEN 0 WHEN 'estimated' THEN 1 ELSE 2 END"
    )
    counts = (
        "answers",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
        "unpriced",
    )
    op.create_table(
        "daily_totals",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("user_id", sa.String(length=200), nullable=False),
        sa.Column("endpoint", sa.String(length=50), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("usage_source", sa.String(length=10), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        sa.PrimaryKeyConstraint(
            "day",
            "user_id",
            "endpoint",
            "model",
            "status",
            "usage_source",
            name=op.f("pk_daily_totals"),
        ),
    )
    op.execute(TOTALS_OF_WHAT_IS_THERE)


def downgrade() -> None:
    op.drop_table("daily_totals")
    op.drop_index("uq_request_logs_user_id_idempotency_key", "request_logs")
    with op.batch_alter_table("request_logs") as batch:
        for name in ("body_hash", "idempotency_key", "rank"):
            batch.drop_column(name)
