"""the passages shown with a refusal

Revision ID: 0018
Revises: 0011
"""

import sqlalchemy as sa

from alembic import op

revision = "0018"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("nearest", sa.JSON()))


def downgrade() -> None:
    op.drop_column("request_logs", "nearest")
