"""posting lists of several documents in one row; only in PostgreSQL

Revision ID: 0031
Revises: 0030
"""

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

runs_beside_previous = True


def upgrade() -> None:
    """Change nothing: FTS5 merges its segments itself."""


def downgrade() -> None:
    """Change nothing."""
