"""the bodies of responses requests, for their retrieval and for later ones

Revision ID: 0030
Revises: 0029
"""

import sqlalchemy as sa

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

runs_beside_previous = True


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("request_body", sa.JSON()))


def downgrade() -> None:
    op.drop_column("request_logs", "request_body")
