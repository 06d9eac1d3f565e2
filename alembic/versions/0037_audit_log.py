"""the audit log: entries are only added

Revision ID: 0037
Revises: 0036
"""

import sqlalchemy as sa

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

runs_beside_previous = True

TRIGGERS = (
    """
    CREATE TRIGGER audit_log_before_update BEFORE UPDATE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'entries of audit_log cannot be changed'); END
    """,
    """
    CREATE TRIGGER audit_log_before_delete BEFORE DELETE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'entries of audit_log cannot be deleted'); END
    """,
)


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(50), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("credential", sa.String(20), nullable=False),
        sa.Column("key_id", sa.String(36)),
        sa.Column("user_id", sa.String(200)),
        sa.Column("target_kind", sa.String(20), nullable=False),
        sa.Column("target_id", sa.String(200)),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    for column in ("action", "actor", "user_id"):
        op.create_index(f"ix_audit_log_{column}_id", "audit_log", [column, "id"])
    for trigger in TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    op.drop_table("audit_log")
