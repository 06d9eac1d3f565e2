"""the schema of revision 0026 of SQLite

Differences: `request_logs` is partitioned by months, so that pages read few of them and old ones
can be dropped at once; rows of months without a partition are in `request_logs_default`. A unique
index would have to contain the id. `postings` is the search index, see
`service/core/search/postings/postgres.py`.

Revision ID: 0026
Revises:
"""

import sqlalchemy as sa

from alembic import op

revision = "0026"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE request_logs (
    seq bigint NOT NULL DEFAULT nextval('request_logs_seq'),
    id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    endpoint text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    finish_reason text COLLATE "C",
    error_code text COLLATE "C",
    prompt text COLLATE "C" NOT NULL,
    response text COLLATE "C" NOT NULL,
    prompt_tokens bigint,
    completion_tokens bigint,
    cached_tokens bigint,
    reasoning_tokens bigint,
    usage_source text COLLATE "C" NOT NULL,
    cost_nano_usd bigint,
    price text COLLATE "C",
    response_time_ms bigint NOT NULL,
    first_token_ms bigint,
    grounded boolean NOT NULL,
    sources json NOT NULL,
    attempts integer NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    rank integer NOT NULL DEFAULT 2,
    idempotency_key text COLLATE "C",
    body_hash text COLLATE "C",
    key_id text COLLATE "C",
    asked_by text COLLATE "C",
    held_tokens bigint,
    held_nano_usd bigint,
    relevance_share double precision,
    relevance_terms double precision,
    relevance_cosine double precision,
    nearest json,
    conversation_id text COLLATE "C",
    messages json,
    erased_at timestamptz,
    choices json,
    searched_for text COLLATE "C",
    CONSTRAINT pk_request_logs PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE request_logs_default PARTITION OF request_logs DEFAULT;
ALTER SEQUENCE request_logs_seq OWNED BY request_logs.seq;
CREATE INDEX ix_request_logs_seq ON request_logs (seq);
CREATE INDEX ix_request_logs_user_id_seq ON request_logs (user_id, seq);
CREATE INDEX ix_request_logs_user_id_id_status_model_endpoint
    ON request_logs (user_id, id, status, model, endpoint);
CREATE INDEX ix_request_logs_status_id_model_endpoint
    ON request_logs (status, id, model, endpoint);
CREATE INDEX ix_request_logs_model_id_status_endpoint
    ON request_logs (model, id, status, endpoint);
CREATE INDEX ix_request_logs_endpoint_id_status ON request_logs (endpoint, id, status);
CREATE INDEX ix_request_logs_user_id_idempotency_key
    ON request_logs (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX ix_request_logs_user_id_conversations
    ON request_logs (user_id, id) WHERE conversation_id = id AND erased_at IS NULL;
CREATE INDEX ix_request_logs_conversation_id_id
    ON request_logs (conversation_id, id) WHERE conversation_id != id;
CREATE TABLE daily_totals (
    day text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    endpoint text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    usage_source text COLLATE "C" NOT NULL,
    answers bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost_nano_usd bigint NOT NULL,
    unpriced bigint NOT NULL,
    CONSTRAINT pk_daily_totals
        PRIMARY KEY (day, user_id, endpoint, model, status, usage_source)
);
CREATE TABLE quota_totals (
    day text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    requests bigint NOT NULL,
    tokens bigint NOT NULL,
    cost_nano_usd bigint NOT NULL,
    CONSTRAINT pk_quota_totals PRIMARY KEY (day, subject)
);
CREATE TABLE users (
    id text COLLATE "C" NOT NULL,
    disabled boolean NOT NULL,
    plan text COLLATE "C",
    limits json,
    created_at timestamptz NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (id)
);
CREATE TABLE plans (
    name text COLLATE "C" NOT NULL,
    limits json NOT NULL,
    CONSTRAINT pk_plans PRIMARY KEY (name)
);
CREATE TABLE api_keys (
    id text COLLATE "C" NOT NULL,
    hash text COLLATE "C" NOT NULL,
    prefix text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    scopes json NOT NULL,
    limits json,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    replaced_by text COLLATE "C",
    made_by text COLLATE "C",
    lineage text COLLATE "C" NOT NULL DEFAULT '',
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_hash UNIQUE (hash),
    CONSTRAINT fk_api_keys_user_id_users FOREIGN KEY (user_id) REFERENCES users (id)
);
CREATE INDEX ix_api_keys_user_id_id ON api_keys (user_id, id);
CREATE TABLE sessions (
    hash text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    scopes json NOT NULL,
    origin text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_sessions PRIMARY KEY (hash)
);
CREATE INDEX ix_sessions_expires_at ON sessions (expires_at);
CREATE TABLE documents (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    shared boolean NOT NULL,
    title text COLLATE "C" NOT NULL,
    content_hash text COLLATE "C" NOT NULL,
    text text COLLATE "C" NOT NULL,
    characters integer NOT NULL,
    chunks integer NOT NULL,
    encoding text COLLATE "C" NOT NULL,
    format text COLLATE "C" NOT NULL DEFAULT 'text',
    pages integer,
    date date,
    source text COLLATE "C",
    file_hash text COLLATE "C",
    tags text COLLATE "C" NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    indexed_by text COLLATE "C" NOT NULL DEFAULT '',
    file_name text COLLATE "C",
    original_bytes bigint,
    CONSTRAINT pk_documents PRIMARY KEY (id),
    CONSTRAINT uq_documents_user_id_content_hash UNIQUE (user_id, content_hash)
);
CREATE INDEX ix_documents_user_id_original_bytes ON documents (user_id, original_bytes)
    WHERE original_bytes IS NOT NULL;
CREATE TABLE original_parts (
    document_id text COLLATE "C" NOT NULL,
    n integer NOT NULL,
    content bytea NOT NULL,
    CONSTRAINT pk_original_parts PRIMARY KEY (document_id, n),
    CONSTRAINT fk_original_parts_document_id_documents
        FOREIGN KEY (document_id) REFERENCES documents (id) ON DELETE CASCADE
);
CREATE TABLE chunks (
    id bigserial NOT NULL,
    document_id text COLLATE "C" NOT NULL,
    n integer NOT NULL,
    start integer NOT NULL,
    "end" integer NOT NULL,
    text text COLLATE "C" NOT NULL,
    words text COLLATE "C" NOT NULL,
    grams text COLLATE "C" NOT NULL,
    content_hash text COLLATE "C",
    scope integer NOT NULL DEFAULT -1,
    page integer,
    CONSTRAINT pk_chunks PRIMARY KEY (id),
    CONSTRAINT uq_chunks_document_id_n UNIQUE (document_id, n),
    CONSTRAINT fk_chunks_document_id_documents
        FOREIGN KEY (document_id) REFERENCES documents (id) ON DELETE CASCADE
);
CREATE INDEX ix_chunks_scope_content_hash ON chunks (scope, content_hash);
CREATE TABLE index_scopes (
    id serial NOT NULL,
    user_id text COLLATE "C",
    version bigint NOT NULL,
    chunks bigint NOT NULL,
    terms bigint NOT NULL,
    vectors bigint NOT NULL DEFAULT 0,
    CONSTRAINT pk_index_scopes PRIMARY KEY (id),
    CONSTRAINT uq_index_scopes_user_id UNIQUE (user_id)
);
INSERT INTO index_scopes (id, version, chunks, terms) VALUES (0, 1, 0, 0);
CREATE TABLE vectors (
    scope integer NOT NULL,
    content_hash text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    vector bytea NOT NULL,
    CONSTRAINT pk_vectors PRIMARY KEY (scope, content_hash, model)
);
CREATE TABLE postings (
    token text COLLATE "C" NOT NULL,
    first bigint NOT NULL,
    chunks integer NOT NULL,
    ids bigint[] NOT NULL,
    CONSTRAINT pk_postings PRIMARY KEY (token, first)
);
CREATE INDEX ix_postings_first ON postings (first);
CREATE TABLE instances (
    id integer NOT NULL,
    pid integer NOT NULL,
    host text NOT NULL,
    address text NOT NULL,
    started_at timestamptz NOT NULL,
    CONSTRAINT pk_instances PRIMARY KEY (id)
);
"""

# A token is a scope, a mark of the kind, and a term, as in the index of SQLite. A row of `postings`
# has the chunks of one document with a token that one statement inserted, an id for each
# occurrence; `first` is the first of them. All chunks of a document are removed together, or move
# to another scope together, so the rows to remove are those with the `first` of a removed chunk.
# A longer token does not fit into the index, and nobody searches for it.
TOKENS = """
CREATE FUNCTION kotae_list_tokens(scope integer, words text, grams text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE AS $$
    SELECT scope || U&'\\E000' || term FROM unnest(string_to_array(words, ' ')) AS term
    WHERE octet_length(term) <= 1000
    UNION ALL
    SELECT scope || U&'\\E001' || term FROM unnest(string_to_array(grams, ' ')) AS term
    WHERE octet_length(term) <= 1000
$$
"""
COUNT_TERMS = """
CREATE FUNCTION kotae_count_terms(words text, grams text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE words WHEN '' THEN 0
            ELSE 1 + length(words) - length(replace(words, ' ', '')) END
        + CASE grams WHEN '' THEN 0
            ELSE 1 + length(grams) - length(replace(grams, ' ', '')) END
$$
"""
_ADD = """
    INSERT INTO postings (token, first, chunks, ids)
    SELECT token, first, count(DISTINCT id), array_agg(id ORDER BY id)
    FROM (
        SELECT id, scope, words, grams, min(id) OVER (PARTITION BY document_id) AS first FROM added
    ) AS chunk, kotae_list_tokens(scope, words, grams) AS token
    GROUP BY token, first;
    UPDATE index_scopes SET version = version + 1, chunks = index_scopes.chunks + sums.chunks,
        terms = index_scopes.terms + sums.terms
    FROM (SELECT scope, count(*) AS chunks, sum(kotae_count_terms(words, grams))::bigint AS terms
        FROM added GROUP BY scope) AS sums
    WHERE index_scopes.id = sums.scope;
"""
_REMOVE = """
    DELETE FROM postings WHERE first IN (SELECT id FROM removed);
    UPDATE index_scopes SET version = version + 1, chunks = index_scopes.chunks - sums.chunks,
        terms = index_scopes.terms - sums.terms
    FROM (SELECT scope, count(*) AS chunks, sum(kotae_count_terms(words, grams))::bigint AS terms
        FROM removed GROUP BY scope) AS sums
    WHERE index_scopes.id = sums.scope;
"""
_ADD_SCOPE = """
    IF NOT new.shared THEN
        INSERT INTO index_scopes (user_id, version, chunks, terms) SELECT new.user_id, 1, 0, 0
        WHERE NOT EXISTS (SELECT 1 FROM index_scopes WHERE user_id = new.user_id)
        ON CONFLICT (user_id) DO NOTHING;
    END IF;
"""
# A vector follows its chunks to another scope, and is deleted with the last chunk of a scope.
_MOVE = """
    SELECT CASE WHEN old.shared THEN 0
        ELSE (SELECT id FROM index_scopes WHERE user_id = old.user_id) END INTO before;
    SELECT CASE WHEN new.shared THEN 0
        ELSE (SELECT id FROM index_scopes WHERE user_id = new.user_id) END INTO after;
    INSERT INTO vectors (scope, content_hash, model, vector)
    SELECT DISTINCT ON (vectors.content_hash, vectors.model)
        after, vectors.content_hash, vectors.model, vectors.vector
    FROM chunks JOIN vectors USING (scope, content_hash) WHERE chunks.document_id = new.id
    ON CONFLICT DO NOTHING;
    UPDATE chunks SET scope = after WHERE document_id = new.id;
    DELETE FROM vectors
    WHERE content_hash IN (SELECT content_hash FROM chunks WHERE document_id = new.id)
    AND scope = before
    AND NOT EXISTS (SELECT 1 FROM chunks
        WHERE chunks.scope = vectors.scope AND chunks.content_hash = vectors.content_hash);
"""
FUNCTIONS = {
    "kotae_add_postings": f"BEGIN {_ADD} RETURN NULL; END",
    "kotae_remove_postings": f"BEGIN {_REMOVE} RETURN NULL; END",
    "kotae_change_postings": f"BEGIN {_REMOVE} {_ADD} RETURN NULL; END",
    "kotae_add_scope": f"BEGIN {_ADD_SCOPE} RETURN NULL; END",
    "kotae_move_chunks": (
        f"DECLARE before integer; after integer; BEGIN {_ADD_SCOPE} {_MOVE} RETURN NULL; END"
    ),
}
TRIGGERS = (
    """CREATE TRIGGER chunks_after_insert AFTER INSERT ON chunks
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kotae_add_postings()""",
    """CREATE TRIGGER chunks_after_delete AFTER DELETE ON chunks
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION kotae_remove_postings()""",
    """CREATE TRIGGER chunks_after_update AFTER UPDATE ON chunks
    REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION kotae_change_postings()""",
    """CREATE TRIGGER documents_after_insert AFTER INSERT ON documents
    FOR EACH ROW EXECUTE FUNCTION kotae_add_scope()""",
    """CREATE TRIGGER documents_after_update AFTER UPDATE OF user_id, shared ON documents
    FOR EACH ROW EXECUTE FUNCTION kotae_move_chunks()""",
)


def upgrade() -> None:
    op.execute("CREATE SEQUENCE request_logs_seq")
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(sa.text(statement.replace(":", "\\:")))
    for statement in (TOKENS, COUNT_TERMS):
        op.execute(sa.text(statement))
    for name, body in FUNCTIONS.items():
        text = f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
        op.execute(sa.text(text.replace(":", "\\:")))
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    for table in (
        "instances", "postings", "vectors", "index_scopes", "chunks", "original_parts", "documents",
        "sessions", "api_keys", "plans", "users", "quota_totals", "daily_totals", "request_logs",
    ):  # fmt: skip
        op.execute(f"DROP TABLE {table}")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("DROP FUNCTION kotae_count_terms")
    op.execute("DROP FUNCTION kotae_list_tokens")
