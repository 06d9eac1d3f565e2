"""charges of answers, and holds of wallets that replicas share

Revision ID: 0042
Revises: 0041
"""

import sqlalchemy as sa

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None

runs_beside_previous = True

HOLDS = """
CREATE TABLE wallet_holds (
    name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_wallet_holds PRIMARY KEY (name)
);
CREATE INDEX ix_wallet_holds_user_id ON wallet_holds (user_id)
"""

# Holds an amount, or changes a hold to another amount. Returns whether it is held, the balance, and
# what the other holds of the user have. The lock of the wallet orders holds and debits of a user;
# the sums are read after it was taken. A user without a wallet has no funds; their holds of 0 need
# no order.
HOLD = """
CREATE FUNCTION kotae_wallet_hold(
    hold text, holder text, wanted bigint, seconds double precision
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    balance bigint;
    held bigint;
BEGIN
    SELECT balance_nano_usd INTO balance FROM wallets WHERE user_id = holder FOR UPDATE;
    balance := coalesce(balance, 0);
    DELETE FROM wallet_holds
        WHERE user_id = holder AND expires_at <= clock_timestamp() AND name <> hold;
    SELECT coalesce(sum(amount), 0) INTO held FROM wallet_holds
        WHERE user_id = holder AND name <> hold;
    IF balance - held < wanted THEN
        RETURN ARRAY[0, balance, held];
    END IF;
    INSERT INTO wallet_holds
        VALUES (hold, holder, wanted, clock_timestamp() + make_interval(secs => seconds))
        ON CONFLICT (name) DO UPDATE
        SET amount = excluded.amount, expires_at = excluded.expires_at;
    RETURN ARRAY[1, balance, held];
END $$
"""


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("charge_nano_usd", sa.BigInteger()))
    op.add_column("request_logs", sa.Column("markup", sa.Text(collation="C")))
    op.add_column("request_logs", sa.Column("prepaid", sa.Boolean()))
    for statement in HOLDS.split(";"):
        op.execute(statement)
    op.execute(HOLD)


def downgrade() -> None:
    op.execute("DROP FUNCTION kotae_wallet_hold")
    op.execute("DROP TABLE wallet_holds")
    for column in ("prepaid", "markup", "charge_nano_usd"):
        op.drop_column("request_logs", column)
