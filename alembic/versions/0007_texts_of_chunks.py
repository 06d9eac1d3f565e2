"""texts of chunks by their hash

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_chunks_content_hash"), "chunks", ["content_hash"])


def downgrade() -> None:
    op.drop_index(op.f("ix_chunks_content_hash"), table_name="chunks")
