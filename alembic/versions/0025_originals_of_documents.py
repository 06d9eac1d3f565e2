"""the uploaded files of documents

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("file_name", sa.String(200)))
    op.add_column("documents", sa.Column("original_bytes", sa.Integer()))
    op.create_index(
        op.f("ix_documents_user_id_original_bytes"),
        "documents",
        ["user_id", "original_bytes"],
        sqlite_where=sa.text("original_bytes IS NOT NULL"),
    )
    op.create_table(
        "original_parts",
        sa.Column("document_id", sa.String(36), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_original_parts_document_id_documents"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "n", name=op.f("pk_original_parts")),
    )


def downgrade() -> None:
    op.drop_table("original_parts")
    op.drop_index(op.f("ix_documents_user_id_original_bytes"), table_name="documents")
    for column in ("original_bytes", "file_name"):
        op.drop_column("documents", column)
