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
    id VARCHAR(36) NOT NULL,
    user_id VARCHAR(200) NOT NULL,
    stripe_customer_id VARCHAR(210) NOT NULL,
    started_at DATETIME NOT NULL,
    ended_at DATETIME,
    CONSTRAINT pk_billing_customers PRIMARY KEY (id)
)
""",
    "CREATE INDEX ix_billing_customers_user_id_ended_at ON billing_customers (user_id, ended_at)",
    """
CREATE TABLE billing_events (
    id VARCHAR(100) NOT NULL,
    customer_id VARCHAR(36) NOT NULL,
    hour DATETIME NOT NULL,
    number INTEGER NOT NULL,
    value_nano_usd BIGINT NOT NULL,
    created_at DATETIME NOT NULL,
    state VARCHAR(10) NOT NULL,
    attempts INTEGER NOT NULL,
    first_attempt_at DATETIME,
    next_at DATETIME,
    ended_at DATETIME,
    error VARCHAR(200),
    CONSTRAINT pk_billing_events PRIMARY KEY (id),
    CONSTRAINT uq_billing_events_customer_id_hour_number UNIQUE (customer_id, hour, number)
)
""",
    "CREATE INDEX ix_billing_events_state_next_at ON billing_events (state, next_at)",
    "CREATE INDEX ix_billing_events_hour ON billing_events (hour)",
    """
CREATE TABLE billing_inbox (
    id VARCHAR(255) NOT NULL,
    type VARCHAR(100) NOT NULL,
    received_at DATETIME NOT NULL,
    state VARCHAR(10) NOT NULL,
    attempts INTEGER NOT NULL,
    next_at DATETIME,
    error VARCHAR(200),
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
