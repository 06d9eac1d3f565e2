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


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("provider", sa.String(50)))
    op.add_column("request_logs", sa.Column("provider_model", sa.String(200)))
    op.create_table(
        "attempts",
        sa.Column("answer_id", sa.String(36), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("provider", sa.String(50), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("error_code", sa.String(50)),
        sa.Column("unbilled", sa.Boolean(), nullable=False),
        sa.Column("usage_source", sa.String(10), nullable=False),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.Column("cached_tokens", sa.Integer()),
        sa.Column("reasoning_tokens", sa.Integer()),
        sa.Column("cost_nano_usd", sa.BigInteger()),
        sa.Column("price", sa.Text()),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("answer_id", "n", name="pk_attempts"),
    )


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_column("request_logs", "provider_model")
    op.drop_column("request_logs", "provider")
