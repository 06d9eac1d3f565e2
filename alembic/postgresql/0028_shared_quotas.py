"""accounts and holds of quotas that replicas share

See `service/core/quota/postgres.py`. `windows` of an account has two windows each of minutes, days
and months, the newest first; each has its start and the used and the held requests, tokens and
nano-dollars. Accounts are locked in the order of their names, after the lock of the writers if
both are needed. `quota_generation`, of one row, is not logged: PostgreSQL empties it after a crash,
in which it may have lost the last holds. It has no index, which would not survive a crash after the
database was created from a template.

Revision ID: 0028
Revises: 0027
"""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE quota_accounts (
    subject text COLLATE "C" NOT NULL,
    open integer NOT NULL,
    windows bigint[] NOT NULL,
    CONSTRAINT pk_quota_accounts PRIMARY KEY (subject)
) WITH (fillfactor = 50);
CREATE TABLE quota_holds (
    id text COLLATE "C" NOT NULL,
    slot integer NOT NULL,
    subjects text[] COLLATE "C" NOT NULL,
    starts bigint[] NOT NULL,
    tokens bigint NOT NULL,
    cost bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_quota_holds PRIMARY KEY (id)
);
CREATE INDEX ix_quota_holds_expires_at ON quota_holds (expires_at);
CREATE TABLE quota_replicas (
    slot integer NOT NULL,
    seen_at timestamptz NOT NULL,
    generation bigint NOT NULL,
    CONSTRAINT pk_quota_replicas PRIMARY KEY (slot)
);
CREATE SEQUENCE quota_generation_seq;
CREATE UNLOGGED TABLE quota_generation (
    n bigint NOT NULL,
    open boolean NOT NULL,
    since timestamptz NOT NULL,
    seen_since timestamptz
)
"""

# Adds to the used (`part` 0) or held (3) amounts of the three windows of `starts`. A newer window
# replaces the older one of the two. Windows that are older than both are not known.
ADD = """
CREATE FUNCTION kotae_quota_add(
    windows bigint[], starts bigint[], part integer, requests bigint, tokens bigint, cost bigint
) RETURNS bigint[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    base integer;
BEGIN
    FOR kind IN 0..2 LOOP
        base := kind * 14;
        IF starts[kind + 1] > windows[base + 1] THEN
            CONTINUE WHEN requests <= 0;
            windows := windows[:base] || starts[kind + 1] || ARRAY[0, 0, 0, 0, 0, 0]::bigint[]
                || windows[base + 1:base + 7] || windows[base + 15:];
        ELSIF starts[kind + 1] = windows[base + 8] THEN
            base := base + 7;
        ELSIF starts[kind + 1] < windows[base + 1] THEN
            CONTINUE;
        END IF;
        base := base + part;
        windows[base + 2] := windows[base + 2] + requests;
        windows[base + 3] := windows[base + 3] + tokens;
        windows[base + 4] := windows[base + 4] + cost;
    END LOOP;
    RETURN windows;
END $$
"""

KNOWS = """
CREATE FUNCTION kotae_quota_knows(windows bigint[], starts bigint[]) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (starts[1] >= windows[1] OR starts[1] = windows[8])
        AND (starts[2] >= windows[15] OR starts[2] = windows[22])
        AND (starts[3] >= windows[29] OR starts[3] = windows[36])
$$
"""

# `limits`: requests and tokens per minute, tokens per day and month, cost per day and month,
# concurrent; NULL: none. Amounts that do not increase are not compared.
FITS = """
CREATE FUNCTION kotae_quota_fits(
    opened integer, windows bigint[], starts bigint[], limits bigint[],
    requests bigint, tokens bigint, cost bigint
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    base integer;
    kind integer;
    amount integer;
    added bigint;
BEGIN
    IF requests > 0 AND opened >= limits[7] THEN
        RETURN false;
    END IF;
    FOR i IN 1..6 LOOP
        CONTINUE WHEN limits[i] IS NULL;
        kind := (ARRAY[0, 0, 1, 2, 1, 2])[i];
        amount := (ARRAY[0, 1, 1, 1, 2, 2])[i];
        added := (ARRAY[requests, tokens, cost])[amount + 1];
        CONTINUE WHEN added <= 0;
        IF added > limits[i] THEN
            RETURN false;
        END IF;
        base := kind * 14;
        IF starts[kind + 1] = windows[base + 8] THEN
            base := base + 7;
        ELSIF starts[kind + 1] <> windows[base + 1] THEN
            CONTINUE;
        END IF;
        IF windows[base + 2 + amount] + windows[base + 5 + amount] + added > limits[i] THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN true;
END $$
"""

STATES = """
CREATE FUNCTION kotae_quota_states(names text[]) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(subject, to_jsonb(open::bigint || windows)), '{}')
    FROM quota_accounts WHERE subject = ANY(names)
$$
"""

# Applies operations in order. Returns NULL unless the generation is open; otherwise a reply for
# each operation, and the accounts afterwards. A refused hold has those that it was compared with.
APPLY = """
CREATE FUNCTION kotae_quota_apply(
    expected bigint, replica integer, seconds double precision, operations jsonb
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    touched text[];
    locked text[];
    op record;
    hold record;
    account record;
    reply jsonb;
    replies jsonb := '[]';
    tokens_added bigint;
    cost_added bigint;
    requests_added bigint;
    found_count integer;
BEGIN
    IF NOT EXISTS (SELECT FROM quota_generation WHERE n = expected AND open) THEN
        RETURN NULL;
    END IF;
    touched := ARRAY(
        SELECT DISTINCT jsonb_array_elements_text(item -> 'subjects')
        FROM jsonb_array_elements(operations) AS item
    );
    locked := ARRAY(
        SELECT subject FROM quota_accounts WHERE subject = ANY(touched) ORDER BY subject FOR UPDATE
    );
    FOR op IN SELECT * FROM jsonb_to_recordset(operations) AS listed(
        kind text, name text, subjects text[], limits bigint[], starts bigint[], tokens bigint,
        cost bigint
    ) LOOP
        reply := '["ok"]';
        SELECT * INTO hold FROM quota_holds WHERE id = op.name;
        IF op.kind = 'release' THEN
            IF hold.id IS NOT NULL THEN
                DELETE FROM quota_holds WHERE id = op.name;
                UPDATE quota_accounts SET open = open - 1, windows = kotae_quota_add(
                    windows, hold.starts, 3, -1, -hold.tokens, -hold.cost
                ) WHERE subject = ANY(hold.subjects);
            END IF;
        ELSIF op.kind = 'grow' AND hold.id IS NULL THEN
            reply := '["absent"]';
        ELSIF op.kind = 'read' OR op.kind = 'grow' OR hold.id IS NULL THEN
            requests_added := CASE op.kind WHEN 'hold' THEN 1 ELSE 0 END;
            tokens_added := op.tokens - CASE op.kind WHEN 'grow' THEN hold.tokens ELSE 0 END;
            cost_added := op.cost - CASE op.kind WHEN 'grow' THEN hold.cost ELSE 0 END;
            found_count := 0;
            -- An account that was created after the locking is missing: others change it.
            FOR account IN
                SELECT * FROM quota_accounts
                WHERE subject = ANY(op.subjects) AND subject = ANY(locked)
            LOOP
                IF NOT (op.kind = 'grow' OR kotae_quota_knows(account.windows, op.starts)) THEN
                    reply := '["missing"]';
                ELSIF op.kind <> 'read' AND reply = '["ok"]' AND NOT kotae_quota_fits(
                    account.open, account.windows, op.starts,
                    op.limits[
                        7 * array_position(op.subjects, account.subject) - 6
                        :7 * array_position(op.subjects, account.subject)
                    ],
                    requests_added, tokens_added, cost_added
                ) THEN
                    reply := jsonb_build_array('full', kotae_quota_states(op.subjects));
                END IF;
                found_count := found_count + 1;
            END LOOP;
            IF found_count < cardinality(op.subjects) AND op.kind <> 'grow' THEN
                reply := '["missing"]';
            ELSIF reply = '["ok"]' AND op.kind <> 'read' THEN
                IF op.kind = 'grow' THEN
                    UPDATE quota_holds SET tokens = op.tokens, cost = op.cost WHERE id = op.name;
                ELSE
                    INSERT INTO quota_holds VALUES (
                        op.name, replica, op.subjects, op.starts, op.tokens, op.cost,
                        clock_timestamp() + seconds * interval '1 second'
                    );
                END IF;
                UPDATE quota_accounts SET open = open + requests_added, windows = kotae_quota_add(
                    windows, op.starts, 3, requests_added, tokens_added, cost_added
                ) WHERE subject = ANY(op.subjects);
            END IF;
        END IF;
        replies := replies || jsonb_build_array(reply);
    END LOOP;
    RETURN jsonb_build_array(replies, kotae_quota_states(touched));
END $$
"""

# Removes holds, and adds charges of rows to the accounts that exist. The writer calls it within the
# transaction of the rows.
SETTLE = """
CREATE FUNCTION kotae_quota_settle(names text[], charges jsonb, only_expired boolean DEFAULT false)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    change record;
    removed numeric := 0;
BEGIN
    PERFORM FROM quota_accounts WHERE subject = ANY(ARRAY(
        SELECT unnest(subjects) FROM quota_holds WHERE id = ANY(names)
        UNION SELECT item ->> 'subject' FROM jsonb_array_elements(charges) AS item
    )) ORDER BY subject FOR UPDATE;
    FOR change IN
        WITH gone AS (
            DELETE FROM quota_holds WHERE id = ANY(names)
            AND NOT (only_expired AND expires_at >= clock_timestamp()) RETURNING *
        )
        SELECT name, starts, count(*) AS holds, sum(tokens)::bigint AS tokens,
            sum(cost)::bigint AS cost, sum(1.0 / cardinality(subjects)) AS share
        FROM gone, unnest(gone.subjects) AS name GROUP BY name, starts
    LOOP
        removed := removed + change.share;
        UPDATE quota_accounts SET open = open - change.holds, windows = kotae_quota_add(
            windows, change.starts, 3, -change.holds, -change.tokens, -change.cost
        ) WHERE subject = change.name;
    END LOOP;
    FOR change IN SELECT * FROM jsonb_to_recordset(charges) AS listed(
        subject text, starts bigint[], requests bigint, tokens bigint, cost bigint
    ) LOOP
        UPDATE quota_accounts SET windows = kotae_quota_add(
            windows, change.starts, 0, change.requests, change.tokens, change.cost
        ) WHERE subject = change.subject;
    END LOOP;
    RETURN round(removed);
END $$
"""

# Creates accounts, or restores older windows, from the log and the holds. Writers and registering
# replicas are excluded: what they commit later is added by them. `first_id`, `end_id`: the ids of
# the minute.
LOAD = """
CREATE FUNCTION kotae_quota_load(
    names text[], starts bigint[], first_id text, end_id text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
    account record;
    base integer;
    is_new boolean;
    counts bigint[];
    held bigint[];
    first_day date;
BEGIN
    PERFORM pg_advisory_xact_lock(118126438081793);
    PERFORM pg_advisory_xact_lock_shared(118126438081797);
    PERFORM FROM quota_accounts WHERE subject = ANY(names) ORDER BY subject FOR UPDATE;
    FOR name IN SELECT DISTINCT listed FROM unnest(names) AS listed ORDER BY listed LOOP
        SELECT * INTO account FROM quota_accounts WHERE subject = name;
        is_new := account.subject IS NULL;
        IF is_new THEN
            account.open := (SELECT count(*) FROM quota_holds WHERE name = ANY(subjects));
            account.windows := array_fill(0::bigint, ARRAY[42]);
        END IF;
        FOR kind IN 0..2 LOOP
            base := kind * 14;
            CONTINUE WHEN starts[kind + 1] = account.windows[base + 8]
                OR starts[kind + 1] >= account.windows[base + 1] AND NOT is_new;
            IF NOT is_new THEN
                base := base + 7;
            END IF;
            first_day := (to_timestamp(starts[kind + 1]) AT TIME ZONE 'UTC')::date;
            IF kind = 0 AND name LIKE 'user:%' THEN
                counts := (
                    SELECT ARRAY[count(*), sum(tokens), sum(cost)]
                    FROM kotae_quota_rows(first_id, end_id) WHERE user_id = substr(name, 6)
                );
            ELSIF kind = 0 THEN
                counts := (
                    SELECT ARRAY[count(*), sum(tokens), sum(cost)]
                    FROM kotae_quota_rows(first_id, end_id) WHERE lineage = substr(name, 5)
                );
            ELSE
                counts := (
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
            held := (
                SELECT ARRAY[count(*), sum(tokens), sum(cost)] FROM quota_holds
                WHERE name = ANY(subjects)
                AND quota_holds.starts[kind + 1] = kotae_quota_load.starts[kind + 1]
            );
            account.windows := account.windows[:base] || starts[kind + 1]
                || coalesce(counts[1], 0) || coalesce(counts[2], 0) || coalesce(counts[3], 0)
                || coalesce(held[1], 0) || coalesce(held[2], 0) || coalesce(held[3], 0)
                || account.windows[base + 8:];
        END LOOP;
        INSERT INTO quota_accounts VALUES (name, account.open, account.windows)
        ON CONFLICT (subject) DO UPDATE SET open = excluded.open, windows = excluded.windows;
    END LOOP;
END $$
"""

ROWS = """
CREATE FUNCTION kotae_quota_rows(first_id text, end_id text)
RETURNS TABLE (user_id text, lineage text, tokens bigint, cost bigint) LANGUAGE sql STABLE AS $$
    SELECT log.user_id, coalesce(api_keys.lineage, log.key_id),
        CASE log.usage_source WHEN 'unknown' THEN coalesce(log.held_tokens, 0)
            ELSE coalesce(log.prompt_tokens, 0) + coalesce(log.completion_tokens, 0) END,
        CASE log.usage_source WHEN 'unknown' THEN coalesce(log.held_nano_usd, 0)
            ELSE coalesce(log.cost_nano_usd, 0) END
    FROM request_logs AS log LEFT JOIN api_keys ON api_keys.id = log.key_id
    WHERE log.id >= first_id AND log.id < end_id
$$
"""

# Registers the holds of a replica, those that exist already with a new expiry, and returns the
# generation. A new one opens when every replica has registered that was seen shortly before the
# last sign of any of them, or when those have not come back for the time of a lease.
REGISTER = """
CREATE FUNCTION kotae_quota_register(
    replica integer, seconds double precision, lease interval, holds jsonb
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    state record;
    op record;
    is_new boolean;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM pg_advisory_xact_lock(118126438081797);
    SELECT * INTO state FROM quota_generation;
    IF NOT FOUND THEN
        INSERT INTO quota_generation SELECT nextval('quota_generation_seq'), false,
            clock_timestamp(), max(seen_at) - lease FROM quota_replicas
        RETURNING * INTO state;
    END IF;
    INSERT INTO quota_replicas VALUES (replica, clock_timestamp(), state.n)
    ON CONFLICT (slot) DO UPDATE
    SET seen_at = excluded.seen_at, generation = excluded.generation;
    PERFORM FROM quota_accounts WHERE subject = ANY(ARRAY(
        SELECT jsonb_array_elements_text(item -> 'subjects')
        FROM jsonb_array_elements(holds) AS item
    )) ORDER BY subject FOR UPDATE;
    FOR op IN SELECT * FROM jsonb_to_recordset(holds) AS listed(
        name text, subjects text[], starts bigint[], tokens bigint, cost bigint
    ) LOOP
        INSERT INTO quota_holds VALUES (
            op.name, replica, op.subjects, op.starts, op.tokens, op.cost,
            clock_timestamp() + seconds * interval '1 second'
        ) ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at
        RETURNING xmax = 0 INTO is_new;
        IF is_new THEN
            UPDATE quota_accounts SET open = open + 1, windows = kotae_quota_add(
                windows, op.starts, 3, 1, op.tokens, op.cost
            ) WHERE subject = ANY(op.subjects);
        END IF;
    END LOOP;
    IF NOT state.open AND (clock_timestamp() > state.since + lease OR NOT EXISTS (
        SELECT FROM quota_replicas WHERE generation <> state.n AND seen_at >= state.seen_since
    )) THEN
        UPDATE quota_generation SET open = true;
        state.open := true;
    END IF;
    RETURN jsonb_build_array(state.n, state.open);
END $$
"""

# The sign of life of a replica. Returns false if it must register its holds again.
KEEP = """
CREATE FUNCTION kotae_quota_keep(
    expected bigint, replica integer, seconds double precision, names text[]
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE quota_replicas SET seen_at = clock_timestamp() WHERE slot = replica;
    UPDATE quota_holds SET expires_at = clock_timestamp() + seconds * interval '1 second'
    WHERE id = ANY(names);
    RETURN EXISTS (SELECT FROM quota_generation WHERE n = expected AND open);
END $$
"""

EXPIRE = """
CREATE FUNCTION kotae_quota_expire(count_max integer) RETURNS integer LANGUAGE sql AS $$
    SELECT kotae_quota_settle(
        ARRAY(SELECT id FROM quota_holds WHERE expires_at < clock_timestamp() LIMIT count_max),
        '[]', true
    )
$$
"""
FUNCTIONS = (ADD, KNOWS, FITS, STATES, APPLY, SETTLE, ROWS, LOAD, REGISTER, KEEP, EXPIRE)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for statement in FUNCTIONS:
        op.get_bind().exec_driver_sql(statement)  # colons are not parameters


def downgrade() -> None:
    for name in (
        "expire", "keep", "register", "load", "rows", "settle", "apply", "states", "fits", "knows",
        "add",
    ):  # fmt: skip
        op.execute(f"DROP FUNCTION kotae_quota_{name}")
    for table in ("quota_generation", "quota_replicas", "quota_holds", "quota_accounts"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP SEQUENCE quota_generation_seq")
