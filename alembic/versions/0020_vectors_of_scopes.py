"""vectors of each scope

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_ADD_SCOPE = """INSERT INTO index_scopes (user_id, version, chunks, terms)
    SELECT new.user_id, 1, 0, 0 WHERE NOT new.shared
    AND NOT EXISTS (SELECT 1 FROM index_scopes WHERE user_id = new.user_id);"""
_SCOPE = (
    "CASE WHEN new.shared THEN 0 ELSE (SELECT id FROM index_scopes WHERE user_id = new.user_id) END"
)
# A vector follows its chunks to another scope, and is deleted with the last chunk of a scope.
_MOVE_VECTORS = f"""CREATE TRIGGER documents_after_update
AFTER UPDATE OF user_id, shared ON documents BEGIN
    {_ADD_SCOPE}
    INSERT OR IGNORE INTO vectors (scope, content_hash, model, vector)
    SELECT {_SCOPE}, vectors.content_hash, vectors.model, vectors.vector
    FROM chunks JOIN vectors USING (scope, content_hash) WHERE chunks.document_id = new.id;
    UPDATE chunks SET scope = {_SCOPE} WHERE document_id = new.id;
    DELETE FROM vectors
    WHERE content_hash IN (SELECT content_hash FROM chunks WHERE document_id = new.id)
    AND scope = CASE WHEN old.shared THEN 0
        ELSE (SELECT id FROM index_scopes WHERE user_id = old.user_id) END
    AND NOT EXISTS (SELECT 1 FROM chunks
        WHERE chunks.scope = vectors.scope AND chunks.content_hash = vectors.content_hash);
END"""  # noqa: S608 - constant expressions
_MOVE_CHUNKS = f"""CREATE TRIGGER documents_after_update
AFTER UPDATE OF user_id, shared ON documents BEGIN
    {_ADD_SCOPE}
    UPDATE chunks SET scope = {_SCOPE} WHERE document_id = new.id;
END"""  # noqa: S608 - as above


def upgrade() -> None:
    op.drop_index(op.f("ix_chunks_content_hash"), table_name="chunks")
    op.create_index(op.f("ix_chunks_scope_content_hash"), "chunks", ["scope", "content_hash"])
    op.rename_table("vectors", "vectors_of_texts")
    op.create_table(
        "vectors",
        sa.Column("scope", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "content_hash", "model", name=op.f("pk_vectors")),
    )
    op.execute(
        "INSERT INTO vectors (scope, content_hash, model, vector)"
        " SELECT DISTINCT chunks.scope, content_hash, model, vector"
        " FROM chunks JOIN vectors_of_texts USING (content_hash)"
    )
    op.drop_table("vectors_of_texts")
    # The version of the vectors of a scope.
    op.add_column(
        "index_scopes", sa.Column("vectors", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute("DROP TRIGGER documents_after_update")
    op.execute(_MOVE_VECTORS)


def downgrade() -> None:
    op.execute("DROP TRIGGER documents_after_update")
    op.execute(_MOVE_CHUNKS)
    op.drop_column("index_scopes", "vectors")
    op.rename_table("vectors", "vectors_of_scopes")
    op.create_table(
        "vectors",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", "content_hash", name=op.f("pk_vectors")),
    )
    op.execute(
        "INSERT OR IGNORE INTO vectors (model, content_hash, vector)"
        " SELECT model, content_hash, vector FROM vectors_of_scopes"
    )
    op.drop_table("vectors_of_scopes")
    op.drop_index(op.f("ix_chunks_scope_content_hash"), table_name="chunks")
    op.create_index(op.f("ix_chunks_content_hash"), "chunks", ["content_hash"])
