"""idempotency keys of several replicas, on PostgreSQL only

Revision ID: 0029
Revises: 0028
"""

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing: SQLite has one process, which knows the keys of running answers."""


def downgrade() -> None:
    """Change nothing."""
