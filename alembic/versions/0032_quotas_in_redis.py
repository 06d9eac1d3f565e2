"""quotas in Redis, with PostgreSQL only

Revision ID: 0032
Revises: 0031
"""

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing: SQLite has one process, whose quotas are in memory."""


def downgrade() -> None:
    """Change nothing."""
