"""charges of answers

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


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("charge_nano_usd", sa.BigInteger()))
    op.add_column("request_logs", sa.Column("markup", sa.String(20)))
    op.add_column("request_logs", sa.Column("prepaid", sa.Boolean()))


def downgrade() -> None:
    for column in ("prepaid", "markup", "charge_nano_usd"):
        op.drop_column("request_logs", column)
