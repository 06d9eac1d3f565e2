"""receipts of answers, and the public keys that verify them

Revision ID: 0036
Revises: 0035
"""

import sqlalchemy as sa

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

runs_beside_previous = True


def upgrade() -> None:
    op.create_table(
        "receipts",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("answer_id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(200), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("nonce", sa.String(36)),
        sa.PrimaryKeyConstraint("id", name="pk_receipts"),
        sa.UniqueConstraint("user_id", "number", name="uq_receipts_user_id_number"),
    )
    op.create_index("ix_receipts_answer_id_number", "receipts", ["answer_id", "number"])
    op.create_table(
        "receipt_keys",
        sa.Column("id", sa.String(50), nullable=False),
        sa.Column("public", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_receipt_keys"),
    )


def downgrade() -> None:
    op.drop_table("receipt_keys")
    op.drop_table("receipts")
