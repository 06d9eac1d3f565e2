"""quotas that replicas share, on PostgreSQL only

Revision ID: 0028
Revises: 0027
"""

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing: SQLite has one process, whose quotas are in memory."""


def downgrade() -> None:
    """Change nothing."""
