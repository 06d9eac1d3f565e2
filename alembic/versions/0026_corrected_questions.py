"""the corrected questions of answers

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("searched_for", sa.Text()))


def downgrade() -> None:
    op.drop_column("request_logs", "searched_for")
