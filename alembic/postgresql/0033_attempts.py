"""the attempts of answers, and the provider of each answer

Revision ID: 0033
Revises: 0032
"""

import sqlalchemy as sa

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None

runs_beside_previous = True

TEXT = sa.Text(collation="C")


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("provider", TEXT))
    op.add_column("request_logs", sa.Column("provider_model", TEXT))
    op.create_table(
        "attempts",
        sa.Column("answer_id", TEXT, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("error_code", TEXT),
        sa.Column("unbilled", sa.Boolean(), nullable=False),
        sa.Column("usage_source", TEXT, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger()),
        sa.Column("completion_tokens", sa.BigInteger()),
        sa.Column("cached_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_nano_usd", sa.BigInteger()),
        sa.Column("price", TEXT),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("answer_id", "n", name="pk_attempts"),
    )


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_column("request_logs", "provider_model")
    op.drop_column("request_logs", "provider")
