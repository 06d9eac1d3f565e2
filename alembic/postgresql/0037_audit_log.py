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

TEXT = sa.Text(collation="C")

TRIGGERS = (
    """
    CREATE FUNCTION kotae_keep_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'entries of audit_log cannot be changed or deleted'
            USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER audit_log_before_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION kotae_keep_audit_log()
    """,
)


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("credential", TEXT, nullable=False),
        sa.Column("key_id", TEXT),
        sa.Column("user_id", TEXT),
        sa.Column("target_kind", TEXT, nullable=False),
        sa.Column("target_id", TEXT),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    for column in ("action", "actor", "user_id"):
        op.create_index(f"ix_audit_log_{column}_id", "audit_log", [column, "id"])
    for trigger in TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION kotae_keep_audit_log")
