"""scopes of the search index

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# The tokens of a chunk are its scope, a mark of the kind, and a term. Private-use characters
# separate them, which occur in no term.
WORD, GRAM = "\ue000", "\ue001"


def join_tokens(row: str) -> str:
    """Return an SQL expression for the tokens of a row of `chunks`."""

    def prefix(column: str, mark: str) -> str:
        return (
            f"CASE {row}.{column} WHEN '' THEN '' ELSE {row}.scope || '{mark}' ||"
            f" replace({row}.{column}, ' ', ' ' || {row}.scope || '{mark}') END"
        )

    return f"{prefix('words', WORD)} || ' ' || {prefix('grams', GRAM)}"


def count_terms(row: str) -> str:
    """Return an SQL expression for the number of terms of a row of `chunks`."""

    def count(column: str) -> str:
        text = f"{row}.{column}"
        return (
            f"CASE {text} WHEN '' THEN 0"
            f" ELSE 1 + length({text}) - length(replace({text}, ' ', '')) END"
        )

    return f"{count('words')} + {count('grams')}"


def _add(row: str) -> str:
    return f"""INSERT INTO chunk_terms (rowid, terms) VALUES ({row}.id, {join_tokens(row)});
        UPDATE index_scopes SET version = version + 1, chunks = chunks + 1,
            terms = terms + {count_terms(row)} WHERE id = {row}.scope;"""  # noqa: S608 - constant expressions


def _remove(row: str) -> str:
    return f"""INSERT INTO chunk_terms (chunk_terms, rowid, terms)
            VALUES ('delete', {row}.id, {join_tokens(row)});
        UPDATE index_scopes SET version = version + 1, chunks = chunks - 1,
            terms = terms - ({count_terms(row)}) WHERE id = {row}.scope;"""  # noqa: S608 - as above


ADD_SCOPE = """INSERT INTO index_scopes (user_id, version, chunks, terms)
    SELECT new.user_id, 1, 0, 0 WHERE NOT new.shared
    AND NOT EXISTS (SELECT 1 FROM index_scopes WHERE user_id = new.user_id);"""

# FTS5 counts the terms of each chunk, but reads no texts: the index has no content table.
FULL_TEXT = """CREATE VIRTUAL TABLE chunk_terms USING fts5(
    terms, content='',
    tokenize="unicode61 remove_diacritics 0 categories 'L* N* M* Co'"
)"""
VOCABULARIES = (
    "CREATE VIRTUAL TABLE chunk_vocabulary USING fts5vocab(chunk_terms, row)",
    "CREATE VIRTUAL TABLE chunk_occurrences USING fts5vocab(chunk_terms, instance)",
)
TRIGGERS = (
    f"CREATE TRIGGER chunks_after_insert AFTER INSERT ON chunks BEGIN {_add('new')} END",
    f"CREATE TRIGGER chunks_after_delete AFTER DELETE ON chunks BEGIN {_remove('old')} END",
    f"""CREATE TRIGGER chunks_after_update AFTER UPDATE ON chunks
    BEGIN {_remove("old")} {_add("new")} END""",
    f"CREATE TRIGGER documents_after_insert AFTER INSERT ON documents BEGIN {ADD_SCOPE} END",
    f"""CREATE TRIGGER documents_after_update AFTER UPDATE OF user_id, shared ON documents BEGIN
        {ADD_SCOPE}
        UPDATE chunks SET scope = CASE WHEN new.shared THEN 0
            ELSE (SELECT id FROM index_scopes WHERE user_id = new.user_id) END
        WHERE document_id = new.id;
    END""",  # noqa: S608 - as above
)

_OLD_FULL_TEXT = (
    """CREATE VIRTUAL TABLE chunk_terms USING fts5(
        words, grams, content='chunks', content_rowid='id',
        tokenize="unicode61 remove_diacritics 0 categories 'L* N* M* Co'"
    )""",
    "INSERT INTO chunk_terms (chunk_terms) VALUES ('rebuild')",
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
    "INSERT INTO index_state (id, version, chunks) SELECT 1, 1, count(*) FROM chunks",
    """CREATE TRIGGER index_state_after_insert AFTER INSERT ON chunks
    BEGIN UPDATE index_state SET version = version + 1, chunks = chunks + 1; END""",
    """CREATE TRIGGER index_state_after_delete AFTER DELETE ON chunks
    BEGIN UPDATE index_state SET version = version + 1, chunks = chunks - 1; END""",
    """CREATE TRIGGER index_state_after_update AFTER UPDATE ON chunks
    BEGIN UPDATE index_state SET version = version + 1; END""",
)


def upgrade() -> None:
    for name in ("insert", "delete", "update"):
        op.execute(f"DROP TRIGGER index_state_after_{name}")
    op.drop_table("index_state")
    _drop_full_text()
    op.create_table(
        "index_scopes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("user_id", sa.String(200), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.Column("terms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_index_scopes")),
        sa.UniqueConstraint("user_id", name=op.f("uq_index_scopes_user_id")),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO index_scopes (id, user_id, version, chunks, terms) VALUES (0, NULL, 1, 0, 0)"
    )
    op.execute(
        "INSERT INTO index_scopes (user_id, version, chunks, terms)"
        " SELECT DISTINCT user_id, 1, 0, 0 FROM documents WHERE NOT shared"
    )
    op.add_column("chunks", sa.Column("scope", sa.Integer(), nullable=False, server_default="-1"))
    op.execute(
        "UPDATE chunks SET scope = CASE WHEN documents.shared THEN 0 ELSE index_scopes.id END"
        " FROM documents LEFT JOIN index_scopes ON index_scopes.user_id = documents.user_id"
        " WHERE documents.id = chunks.document_id"
    )
    op.execute(
        f"""UPDATE index_scopes SET chunks = sums.chunks, terms = sums.terms
        FROM (SELECT scope, count(*) AS chunks, sum({count_terms("chunks")}) AS terms
            FROM chunks GROUP BY scope) AS sums
        WHERE sums.scope = index_scopes.id"""  # noqa: S608 - as above
    )
    op.execute(FULL_TEXT)
    op.execute(
        f"INSERT INTO chunk_terms (rowid, terms) SELECT id, {join_tokens('chunks')} FROM chunks"  # noqa: S608 - as above
    )
    for statement in (*VOCABULARIES, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    for name in ("insert", "update"):
        op.execute(f"DROP TRIGGER documents_after_{name}")
    op.execute("DROP TABLE chunk_occurrences")
    _drop_full_text()
    op.drop_column("chunks", "scope")
    op.drop_table("index_scopes")
    op.create_table(
        "index_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_index_state")),
    )
    for statement in _OLD_FULL_TEXT:
        op.execute(statement)


def _drop_full_text() -> None:
    op.execute("DROP TABLE chunk_vocabulary")
    for name in ("insert", "delete", "update"):
        op.execute(f"DROP TRIGGER chunks_after_{name}")
    op.execute("DROP TABLE chunk_terms")
