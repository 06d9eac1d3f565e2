"""the format, the number of pages and the date of documents, and the pages of chunks

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "documents", sa.Column("format", sa.String(20), nullable=False, server_default="text")
    )
    op.add_column("documents", sa.Column("pages", sa.Integer()))
    op.add_column("documents", sa.Column("date", sa.Date()))
    op.add_column("chunks", sa.Column("page", sa.Integer()))


def downgrade() -> None:
    op.drop_column("chunks", "page")
    for column in ("date", "pages", "format"):
        op.drop_column("documents", column)
