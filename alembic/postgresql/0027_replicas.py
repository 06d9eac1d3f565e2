"""replicas, their leader, and their long answers

`replicas`: who has a slot. `leader` has one row. `open_answers`: the intents of answers that have
been running for a while, for the case that the journal of their replica is lost.

Revision ID: 0027
Revises: 0026
"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE replicas (
    slot integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    incarnation text COLLATE "C" NOT NULL,
    address text NOT NULL,
    since timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    state text COLLATE "C" NOT NULL,
    CONSTRAINT pk_replicas PRIMARY KEY (slot),
    CONSTRAINT uq_replicas_name UNIQUE (name)
);
CREATE TABLE leader (
    id integer NOT NULL,
    term bigint NOT NULL,
    slot integer NOT NULL,
    incarnation text COLLATE "C" NOT NULL,
    CONSTRAINT pk_leader PRIMARY KEY (id)
);
INSERT INTO leader (id, term, slot, incarnation) VALUES (0, 0, -1, '');
CREATE TABLE open_answers (
    id text COLLATE "C" NOT NULL,
    slot integer NOT NULL,
    intent bytea NOT NULL,
    CONSTRAINT pk_open_answers PRIMARY KEY (id)
);
CREATE INDEX ix_open_answers_slot ON open_answers (slot);
"""


def upgrade() -> None:
    for statement in TABLES.split(";"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    for table in ("open_answers", "leader", "replicas"):
        op.execute(f"DROP TABLE {table}")
