"""the lengths of chunks, with PostgreSQL only

Revision ID: 0034
Revises: 0033
"""

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing: FTS5 stores the lengths."""


def downgrade() -> None:
    """Change nothing."""
