"""the lengths of chunks, which scoring by BM25 needs for all chunks with a word

A length is the number of words and grams, as in FTS5. Counting them takes 0.1 ms per chunk, so that
a search for one frequent word took seconds. Triggers maintain the table, also for older versions.

Revision ID: 0034
Revises: 0033
"""

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None

runs_beside_previous = True

STATEMENTS = (
    # Nobody adds chunks until the triggers exist.
    "LOCK TABLE chunks IN SHARE ROW EXCLUSIVE MODE",
    """
    CREATE TABLE chunk_lengths (
        id bigint NOT NULL,
        terms bigint NOT NULL,
        CONSTRAINT pk_chunk_lengths PRIMARY KEY (id) INCLUDE (terms)
    )
    """,
    "INSERT INTO chunk_lengths SELECT id, kotae_count_terms(words, grams) FROM chunks ORDER BY id",
    """
    CREATE FUNCTION kotae_set_lengths() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chunk_lengths SELECT id, kotae_count_terms(words, grams) FROM added
        ON CONFLICT (id) DO UPDATE SET terms = excluded.terms
        WHERE chunk_lengths.terms <> excluded.terms;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION kotae_remove_lengths() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM chunk_lengths USING removed WHERE chunk_lengths.id = removed.id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER chunk_lengths_after_insert AFTER INSERT ON chunks
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kotae_set_lengths()
    """,
    """
    CREATE TRIGGER chunk_lengths_after_update AFTER UPDATE ON chunks
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kotae_set_lengths()
    """,
    """
    CREATE TRIGGER chunk_lengths_after_delete AFTER DELETE ON chunks
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION kotae_remove_lengths()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for name in ("insert", "update", "delete"):
        op.execute(f"DROP TRIGGER chunk_lengths_after_{name} ON chunks")
    op.execute("DROP FUNCTION kotae_set_lengths")
    op.execute("DROP FUNCTION kotae_remove_lengths")
    op.execute("DROP TABLE chunk_lengths")
