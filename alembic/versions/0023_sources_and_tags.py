"""sources, file hashes and tags of documents

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
    op.add_column("documents", sa.Column("source", sa.String(1000)))
    op.add_column("documents", sa.Column("file_hash", sa.String(64)))
    op.add_column("documents", sa.Column("tags", sa.Text(), nullable=False, server_default=""))
    op.create_index(op.f("ix_documents_user_id_source"), "documents", ["user_id", "source"])


def downgrade() -> None:
    op.drop_index(op.f("ix_documents_user_id_source"), table_name="documents")
    for column in ("tags", "file_hash", "source"):
        op.drop_column("documents", column)
