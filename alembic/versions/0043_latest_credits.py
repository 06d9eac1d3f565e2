"""the latest credit of each wallet

Revision ID: 0043
Revises: 0042
"""

import sqlalchemy as sa

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

runs_beside_previous = True

FILL = """
UPDATE wallets SET credit_id = (
    SELECT id FROM ledger_entries
    WHERE ledger_entries.user_id = wallets.user_id AND amount_nano_usd > 0 AND kind <> 'debit'
    ORDER BY seq DESC LIMIT 1
)
"""


def upgrade() -> None:
    op.add_column("wallets", sa.Column("credit_id", sa.String(36)))
    op.execute(FILL)


def downgrade() -> None:
    op.drop_column("wallets", "credit_id")
