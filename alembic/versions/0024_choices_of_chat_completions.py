"""the choices of chat completions that are more than a text

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("choices", sa.JSON()))


def downgrade() -> None:
    op.drop_column("request_logs", "choices")
