"""posting lists of several documents in one row

A row of `postings` has ascending ids, of which `first` and `last` are the first and the last. It
begins with the chunks of one document; merging joins rows of a token
(`service/core/search/postings_merge.py`). A removed chunk is looked up by its tokens.

Revision ID: 0031
Revises: 0030
"""

import sqlalchemy as sa

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

runs_beside_previous = True

_COUNT_ADDED = """
    UPDATE index_scopes SET version = version + 1, chunks = index_scopes.chunks + sums.chunks,
        terms = index_scopes.terms + sums.terms
    FROM (SELECT scope, count(*) AS chunks, sum(kotae_count_terms(words, grams))::bigint AS terms
        FROM added GROUP BY scope) AS sums
    WHERE index_scopes.id = sums.scope;
"""
_COUNT_REMOVED = """
    UPDATE index_scopes SET version = version + 1, chunks = index_scopes.chunks - sums.chunks,
        terms = index_scopes.terms - sums.terms
    FROM (SELECT scope, count(*) AS chunks, sum(kotae_count_terms(words, grams))::bigint AS terms
        FROM removed GROUP BY scope) AS sums
    WHERE index_scopes.id = sums.scope;
"""
_ADD = """
    INSERT INTO postings (token, first, last, chunks, ids)
    SELECT token, min(id), max(id), count(DISTINCT id), array_agg(id ORDER BY id)
    FROM added, kotae_list_tokens(scope, words, grams) AS token
    GROUP BY token, document_id;
"""
_REMOVE = """
    WITH gone AS (
        SELECT DISTINCT token, id FROM removed, kotae_list_tokens(scope, words, grams) AS token
    ), hit AS (
        SELECT p.token, p.first, array_agg(gone.id) AS ids
        FROM gone JOIN postings AS p
            ON p.token = gone.token AND p.first <= gone.id AND p.last >= gone.id
        GROUP BY p.token, p.first
    ), rest AS (
        SELECT p.token, p.first, ARRAY(
            SELECT kept.id FROM unnest(p.ids) AS kept (id)
            WHERE kept.id <> ALL (hit.ids) ORDER BY kept.id
        ) AS ids
        FROM hit JOIN postings AS p ON p.token = hit.token AND p.first = hit.first
    ), dropped AS (
        DELETE FROM postings AS p USING rest
        WHERE p.token = rest.token AND p.first = rest.first AND cardinality(rest.ids) = 0
    )
    UPDATE postings AS p
    SET ids = rest.ids, first = rest.ids[1], last = rest.ids[cardinality(rest.ids)],
        chunks = (SELECT count(DISTINCT kept.id) FROM unnest(rest.ids) AS kept (id))
    FROM rest WHERE p.token = rest.token AND p.first = rest.first AND cardinality(rest.ids) > 0;
"""
FUNCTIONS = {
    "kotae_add_postings": (_ADD, _COUNT_ADDED),
    "kotae_remove_postings": (_REMOVE, _COUNT_REMOVED),
    "kotae_change_postings": (_REMOVE, _COUNT_REMOVED, _ADD, _COUNT_ADDED),
}
# As in 0026.
_OLD_ADD = """
    INSERT INTO postings (token, first, chunks, ids)
    SELECT token, min(id), count(DISTINCT id), array_agg(id ORDER BY id)
    FROM added, kotae_list_tokens(scope, words, grams) AS token
    GROUP BY token, document_id;
"""
_OLD_REMOVE = """
    DELETE FROM postings WHERE first IN (SELECT id FROM removed);
"""
OLD_FUNCTIONS = {
    "kotae_add_postings": (_OLD_ADD, _COUNT_ADDED),
    "kotae_remove_postings": (_OLD_REMOVE, _COUNT_REMOVED),
    "kotae_change_postings": (_OLD_REMOVE, _COUNT_REMOVED, _OLD_ADD, _COUNT_ADDED),
}


def upgrade() -> None:
    op.execute("ALTER TABLE postings ADD COLUMN last bigint")
    op.execute("UPDATE postings SET last = ids[cardinality(ids)]")
    op.execute("ALTER TABLE postings ALTER COLUMN last SET NOT NULL")
    op.execute("DROP INDEX ix_postings_first")
    _replace_functions(FUNCTIONS)


def downgrade() -> None:
    """Write the rows again, one for each document."""
    _replace_functions(OLD_FUNCTIONS)
    op.execute("ALTER TABLE postings DROP COLUMN last")
    op.execute("DELETE FROM postings")
    op.execute(
        """
        INSERT INTO postings (token, first, chunks, ids)
        SELECT token, min(id), count(DISTINCT id), array_agg(id ORDER BY id)
        FROM chunks, kotae_list_tokens(scope, words, grams) AS token
        GROUP BY token, document_id
        """
    )
    op.execute("CREATE INDEX ix_postings_first ON postings (first)")


def _replace_functions(functions: dict[str, tuple[str, ...]]) -> None:
    for name, statements in functions.items():
        text = (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$BEGIN {' '.join(statements)} RETURN NULL; END$$"
        )
        op.execute(sa.text(text.replace(":", "\\:")))
