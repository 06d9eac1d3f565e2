"""the cosine of answers

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("relevance_cosine", sa.Float()))


def downgrade() -> None:
    op.drop_column("request_logs", "relevance_cosine")
