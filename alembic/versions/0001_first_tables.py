"""first tables

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# An external-content FTS5 table of terms that Kotae extracted: the tokenizer only splits at spaces,
# so every letter, digit, mark and private-use character is a token character. Triggers update it.
FULL_TEXT = (
    """CREATE VIRTUAL TABLE chunk_terms USING fts5(
        words, grams, content='chunks', content_rowid='id',
        tokenize="unicode61 remove_diacritics 0 categories 'L* N* M* Co'"
    )""",
    """CREATE TRIGGER chunks_after_insert AFTER INSERT ON chunks BEGIN
        INSERT INTO chunk_terms(rowid, words, grams) VALUES (new.id, new.words, new.grams);
    END""",
    """CREATE TRIGGER chunks_after_delete AFTER DELETE ON chunks BEGIN
        INSERT INTO chunk_terms(chunk_terms, rowid, words, grams)
        VALUES ('delete', old.id, old.words, old.grams);
    END""",
    """CREATE TRIGGER chunks_after_update AFTER UPDATE OF words, grams ON chunks BEGIN
        INSERT INTO chunk_terms(chunk_terms, rowid, words, grams)
        VALUES ('delete', old.id, old.words, old.grams);
        INSERT INTO chunk_terms(rowid, words, grams) VALUES (new.id, new.words, new.grams);
    END""",
    "CREATE VIRTUAL TABLE chunk_vocabulary USING fts5vocab(chunk_terms, col)",
)


def upgrade() -> None:
    op.create_table(
        "documents",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=200), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_documents")),
        sa.UniqueConstraint(
            "user_id", "content_hash", name=op.f("uq_documents_user_id_content_hash")
        ),
    )
    op.create_table(
        "index_info",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_index_info")),
    )
    op.create_table(
        "request_logs",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_id", sa.String(length=200), nullable=False),
        sa.Column("endpoint", sa.String(length=50), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("finish_reason", sa.String(length=50), nullable=True),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("cached_tokens", sa.Integer(), nullable=True),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=True),
        sa.Column("usage_source", sa.String(length=10), nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("price", sa.Text(), nullable=True),
        sa.Column("response_time_ms", sa.Integer(), nullable=False),
        sa.Column("first_token_ms", sa.Integer(), nullable=True),
        sa.Column("grounded", sa.Boolean(), nullable=False),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_request_logs")),
        sa.UniqueConstraint("id", name=op.f("uq_request_logs_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("request_logs", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_request_logs_endpoint_id"), ["endpoint", "id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_request_logs_model_id"), ["model", "id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_request_logs_status_id"), ["status", "id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_request_logs_user_id_id"), ["user_id", "id"], unique=False
        )

    op.create_table(
        "chunks",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("document_id", sa.String(length=36), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("grams", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_chunks_document_id_documents"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
        sa.UniqueConstraint("document_id", "n", name=op.f("uq_chunks_document_id_n")),
        sqlite_autoincrement=True,
    )
    for statement in FULL_TEXT:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE chunk_vocabulary")
    for trigger in ("insert", "delete", "update"):
        op.execute(f"DROP TRIGGER chunks_after_{trigger}")
    op.execute("DROP TABLE chunk_terms")
    op.drop_table("chunks")
    with op.batch_alter_table("request_logs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_request_logs_user_id_id"))
        batch_op.drop_index(batch_op.f("ix_request_logs_status_id"))
        batch_op.drop_index(batch_op.f("ix_request_logs_model_id"))
        batch_op.drop_index(batch_op.f("ix_request_logs_endpoint_id"))

    op.drop_table("request_logs")
    op.drop_table("index_info")
    op.drop_table("documents")
