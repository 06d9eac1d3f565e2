"""the choices of chat completions that are more than a text

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("choices", sa.JSON()))


def downgrade() -> None:
    op.drop_column("request_logs", "choices")
