"""customers at Stripe, meter events, and events from Stripe

Revision ID: 0039
Revises: 0038
"""

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

runs_beside_previous = True

STATEMENTS = (
    """
CREATE TABLE billing_customers (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    stripe_customer_id text COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT pk_billing_customers PRIMARY KEY (id)
)
""",
    "CREATE INDEX ix_billing_customers_user_id_ended_at ON billing_customers (user_id, ended_at)",
    """
CREATE TABLE billing_events (
    id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    number integer NOT NULL,
    value_nano_usd bigint NOT NULL,
    created_at timestamptz NOT NULL,
    state text COLLATE "C" NOT NULL,
    attempts integer NOT NULL,
    first_attempt_at timestamptz,
    next_at timestamptz,
    ended_at timestamptz,
    error text COLLATE "C",
    CONSTRAINT pk_billing_events PRIMARY KEY (id),
    CONSTRAINT uq_billing_events_customer_id_hour_number UNIQUE (customer_id, hour, number)
)
""",
    "CREATE INDEX ix_billing_events_state_next_at ON billing_events (state, next_at)",
    "CREATE INDEX ix_billing_events_hour ON billing_events (hour)",
    """
CREATE TABLE billing_inbox (
    id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    received_at timestamptz NOT NULL,
    state text COLLATE "C" NOT NULL,
    attempts integer NOT NULL,
    next_at timestamptz,
    error text COLLATE "C",
    CONSTRAINT pk_billing_inbox PRIMARY KEY (id)
)
""",
    "CREATE INDEX ix_billing_inbox_state_next_at ON billing_inbox (state, next_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("billing_inbox")
    op.drop_table("billing_events")
    op.drop_table("billing_customers")
