"""nothing: the same number as on PostgreSQL

A SQLite database is used by one process, so there are no replicas.

Revision ID: 0027
Revises: 0026
"""

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
