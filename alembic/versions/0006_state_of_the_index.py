"""state of the index, relevance of answers, vectors

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Caches of document frequencies are valid for one version.
TRIGGERS = {
    "insert": "UPDATE index_state SET version = version + 1, chunks = chunks + 1",
    "delete": "UPDATE index_state SET version = version + 1, chunks = chunks - 1",
    "update": "UPDATE index_state SET version = version + 1",
}


def upgrade() -> None:
    op.drop_table("index_info")
    op.create_table(
        "index_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_index_state")),
    )
    op.execute("INSERT INTO index_state (id, version, chunks) SELECT 1, 1, count(*) FROM chunks")
    for when, change in TRIGGERS.items():
        op.execute(
            f"CREATE TRIGGER index_state_after_{when} AFTER {when} ON chunks BEGIN {change}; END"
        )
    op.create_table(
        "vectors",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", "content_hash", name=op.f("pk_vectors")),
    )
    # Existing documents are reindexed in the background: "" differs from any `indexed_by`.
    op.add_column(
        "documents", sa.Column("indexed_by", sa.String(200), nullable=False, server_default="")
    )
    op.add_column("chunks", sa.Column("content_hash", sa.String(64)))
    op.add_column("request_logs", sa.Column("relevance_share", sa.Float()))
    op.add_column("request_logs", sa.Column("relevance_terms", sa.Float()))


def downgrade() -> None:
    for column in ("relevance_terms", "relevance_share"):
        op.drop_column("request_logs", column)
    for when in TRIGGERS:
        op.execute(f"DROP TRIGGER index_state_after_{when}")
    op.drop_column("chunks", "content_hash")
    op.drop_column("documents", "indexed_by")
    op.drop_table("vectors")
    op.drop_table("index_state")
    op.create_table(
        "index_info",
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("value", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_index_info")),
    )
