"""the key that replaces a rotated one

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(36)))


def downgrade() -> None:
    op.drop_column("api_keys", "replaced_by")
