"""users, keys, sessions, plans, quota totals

Revision ID: 0005
Revises: 0003
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = (
    ("key_id", sa.String(length=36)),
    ("asked_by", sa.String(length=200)),
    ("held_tokens", sa.Integer()),
    ("held_nano_usd", sa.BigInteger()),
)
CHARGES_OF_WHAT_IS_THERE = """
INSERT INTO quota_totals
SELECT day, 'user:' || user_id, sum(answers), sum(prompt_tokens + completion_tokens),
       sum(cost_nano_usd)
FROM daily_totals GROUP BY 1, 2
"""


def upgrade() -> None:
    for name, kind in COLUMNS:  # ADD COLUMN: a batch operation would copy the log
        op.add_column("request_logs", sa.Column(name, kind, nullable=True))
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("plan", sa.String(length=50), nullable=True),
        sa.Column("limits", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    op.create_table(
        "plans",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_plans")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("user_id", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_index(op.f("ix_api_keys_user_id_id"), "api_keys", ["user_id", "id"])
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("origin", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_table(
        "quota_totals",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("subject", sa.String(length=210), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("requests", "tokens", "cost_nano_usd")
        ),
        sa.PrimaryKeyConstraint("day", "subject", name=op.f("pk_quota_totals")),
    )
    op.execute(CHARGES_OF_WHAT_IS_THERE)


def downgrade() -> None:
    for table in ("quota_totals", "sessions", "api_keys", "plans", "users"):
        op.drop_table(table)
    with op.batch_alter_table("request_logs") as batch:
        for name, _ in reversed(COLUMNS):
            batch.drop_column(name)
