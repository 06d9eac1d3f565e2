"""quotas in Redis: the epoch of its memory, and the charges that it has not got yet

With Redis, the transactions of writers add their charges to `quota_outbox`, from which a replica
delivers them in order. `quota_epoch` has a row if Redis is used.

Revision ID: 0032
Revises: 0031
"""

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE quota_epoch (
    n bigint NOT NULL,
    run text NOT NULL,
    open boolean NOT NULL,
    since timestamptz NOT NULL,
    seen_since timestamptz
);
CREATE TABLE quota_outbox (
    id bigserial NOT NULL,
    names text[] NOT NULL,
    charges jsonb NOT NULL,
    CONSTRAINT pk_quota_outbox PRIMARY KEY (id)
)
"""

# The amounts of a window, from the log.
USED = """
CREATE FUNCTION kotae_quota_used(
    name text, kind integer, start bigint, first_id text, end_id text
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    first_day date;
BEGIN
    first_day := (to_timestamp(start) AT TIME ZONE 'UTC')::date;
    IF kind = 0 AND name LIKE 'user:%' THEN
        RETURN (
            SELECT ARRAY[count(*), sum(tokens), sum(cost)]
            FROM kotae_quota_rows(first_id, end_id) WHERE user_id = substr(name, 6)
        );
    ELSIF kind = 0 THEN
        RETURN (
            SELECT ARRAY[count(*), sum(tokens), sum(cost)]
            FROM kotae_quota_rows(first_id, end_id) WHERE lineage = substr(name, 5)
        );
    ELSE
        RETURN (
            SELECT ARRAY[sum(requests), sum(tokens), sum(cost_nano_usd)] FROM quota_totals
            WHERE subject = name AND quota_totals.day = ANY(ARRAY(
                SELECT to_char(listed, 'YYYY-MM-DD') FROM generate_series(
                    first_day::timestamp,
                    first_day + (kind - 1) * interval '1 month -1 day',
                    interval '1 day'
                ) AS listed
            ))
        );
    END IF;
END $$
"""

POST = """
CREATE FUNCTION kotae_quota_post(names text[], charges jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO quota_outbox (names, charges) SELECT $1, $2 WHERE EXISTS (SELECT FROM quota_epoch)
$$
"""

# The used amounts of the windows of `starts` of each name, and the last charge that they contain.
# Writers are excluded.
READ_USED = """
CREATE FUNCTION kotae_quota_read_used(
    names text[], starts bigint[], first_id text, end_id text
) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(118126438081793);
    RETURN jsonb_build_array(
        (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM quota_outbox_id_seq),
        (SELECT jsonb_object_agg(name, (
            SELECT jsonb_agg(
                to_jsonb(kotae_quota_used(name, kind, starts[kind + 1], first_id, end_id))
                ORDER BY kind
            ) FROM generate_series(0, 2) AS kind
        )) FROM (SELECT DISTINCT unnest(names) AS name) AS listed)
    );
END $$
"""

# Returns the epoch of the memory that has the run id `server_run` and, as the replica has read it,
# the epoch `seen` (-1: none). Begins a new one unless it is that of the table, or was begun a
# moment ago. With `replica`, notes that it has registered its holds; see `kotae_quota_register`.
EPOCH = """
CREATE FUNCTION kotae_quota_enter_epoch(
    replica integer, server_run text, seen bigint, lease interval
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    state record;
BEGIN
    PERFORM pg_advisory_xact_lock(118126438081797);
    SELECT * INTO state FROM quota_epoch;
    IF NOT FOUND OR state.run <> server_run OR (
        state.n <> seen AND (state.open OR state.since < clock_timestamp() - interval '1 second')
    ) THEN
        DELETE FROM quota_epoch;
        INSERT INTO quota_epoch SELECT greatest(coalesce(state.n, 0), seen, 0) + 1, server_run,
            false, clock_timestamp(), max(seen_at) - lease FROM quota_replicas
        RETURNING * INTO state;
    END IF;
    IF replica IS NOT NULL THEN
        INSERT INTO quota_replicas VALUES (replica, clock_timestamp(), state.n)
        ON CONFLICT (slot) DO UPDATE
        SET seen_at = excluded.seen_at, generation = excluded.generation;
        IF NOT state.open AND (clock_timestamp() > state.since + lease OR NOT EXISTS (
            SELECT FROM quota_replicas WHERE generation <> state.n AND seen_at >= state.seen_since
        )) THEN
            UPDATE quota_epoch SET open = true;
            state.open := true;
        END IF;
    END IF;
    RETURN jsonb_build_array(state.n, state.open);
END $$
"""
FUNCTIONS = (USED, POST, READ_USED, EPOCH)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for statement in FUNCTIONS:
        op.get_bind().exec_driver_sql(statement)  # colons are not parameters


def downgrade() -> None:
    for name in ("enter_epoch", "read_used", "post", "used"):
        op.execute(f"DROP FUNCTION kotae_quota_{name}")
    op.execute("DROP TABLE quota_outbox")
    op.execute("DROP TABLE quota_epoch")
