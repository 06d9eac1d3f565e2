"""conversations, the messages of requests, and erasure

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("request_logs", sa.Column("conversation_id", sa.String(36)))
    op.add_column("request_logs", sa.Column("messages", sa.JSON()))
    op.add_column("request_logs", sa.Column("erased_at", sa.DateTime(timezone=True)))
    op.create_index(
        "ix_request_logs_user_id_conversations",
        "request_logs",
        ["user_id", "id"],
        sqlite_where=sa.text("conversation_id = id AND erased_at IS NULL"),
    )
    op.create_index(
        "ix_request_logs_conversation_id_id",
        "request_logs",
        ["conversation_id", "id"],
        sqlite_where=sa.text("conversation_id != id"),
    )


def downgrade() -> None:
    op.drop_index("ix_request_logs_conversation_id_id", "request_logs")
    op.drop_index("ix_request_logs_user_id_conversations", "request_logs")
    for name in ("erased_at", "messages", "conversation_id"):
        op.drop_column("request_logs", name)
