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
    seq bigserial NOT NULL,
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    amount_nano_usd bigint NOT NULL,
    cause text COLLATE "C" NOT NULL,
    note text COLLATE "C",
    created_at timestamptz NOT NULL,
    CONSTRAINT pk_ledger_entries PRIMARY KEY (seq),
    CONSTRAINT uq_ledger_entries_id UNIQUE (id),
    CONSTRAINT uq_ledger_entries_cause UNIQUE (cause),
    CONSTRAINT ck_ledger_entries_amount CHECK (amount_nano_usd <> 0)
)
""",
    "CREATE INDEX ix_ledger_entries_user_id_seq ON ledger_entries (user_id, seq)",
    """
CREATE FUNCTION kotae_keep_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries of the ledger cannot be changed or deleted'
        USING ERRCODE = 'integrity_constraint_violation';
END $$
""",
    """
CREATE TRIGGER ledger_entries_before_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
FOR EACH STATEMENT EXECUTE FUNCTION kotae_keep_ledger()
""",
    """
CREATE TABLE wallets (
    user_id text COLLATE "C" NOT NULL,
    balance_nano_usd bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT pk_wallets PRIMARY KEY (user_id)
)
""",
    "ALTER TABLE plans ADD COLUMN prepaid boolean NOT NULL DEFAULT false",
    'ALTER TABLE plans ADD COLUMN markup text COLLATE "C"',
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE plans DROP COLUMN markup")
    op.execute("ALTER TABLE plans DROP COLUMN prepaid")
    op.drop_table("wallets")
    op.drop_table("ledger_entries")
    op.execute("DROP FUNCTION kotae_keep_ledger")
