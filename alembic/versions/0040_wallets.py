"""the ledger, wallets, and the terms of plans

Revision ID: 0040
Revises: 0039
"""

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

runs_beside_previous = True

STATEMENTS = (
    """
CREATE TABLE ledger_entries (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id VARCHAR(36) NOT NULL,
    user_id VARCHAR(200) NOT NULL,
    kind VARCHAR(10) NOT NULL,
    amount_nano_usd BIGINT NOT NULL,
    cause VARCHAR(300) NOT NULL,
    note VARCHAR(500),
    created_at DATETIME NOT NULL,
    CONSTRAINT uq_ledger_entries_id UNIQUE (id),
    CONSTRAINT uq_ledger_entries_cause UNIQUE (cause),
    CONSTRAINT ck_ledger_entries_amount CHECK (amount_nano_usd <> 0)
)
""",
    "CREATE INDEX ix_ledger_entries_user_id_seq ON ledger_entries (user_id, seq)",
    """
CREATE TRIGGER ledger_entries_before_update BEFORE UPDATE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries of the ledger cannot be changed'); END
""",
    """
CREATE TRIGGER ledger_entries_before_delete BEFORE DELETE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries of the ledger cannot be deleted'); END
""",
    """
CREATE TABLE wallets (
    user_id VARCHAR(200) NOT NULL,
    balance_nano_usd BIGINT NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_wallets PRIMARY KEY (user_id)
)
""",
    "ALTER TABLE plans ADD COLUMN prepaid BOOLEAN NOT NULL DEFAULT 0",
    "ALTER TABLE plans ADD COLUMN markup VARCHAR(20)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE plans DROP COLUMN markup")
    op.execute("ALTER TABLE plans DROP COLUMN prepaid")
    op.drop_table("wallets")
    op.drop_table("ledger_entries")
