"""payers of top-ups, and the objects of events from Stripe

Revision ID: 0041
Revises: 0040
"""

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

runs_beside_previous = True

STATEMENTS = (
    """
CREATE TABLE billing_payers (
    user_id text COLLATE "C" NOT NULL,
    request_key text COLLATE "C" NOT NULL,
    requested_at timestamptz NOT NULL,
    stripe_customer_id text COLLATE "C",
    CONSTRAINT pk_billing_payers PRIMARY KEY (user_id),
    CONSTRAINT uq_billing_payers_stripe_customer_id UNIQUE (stripe_customer_id)
)
""",
    'ALTER TABLE billing_inbox ADD COLUMN object_id text COLLATE "C"',
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE billing_inbox DROP COLUMN object_id")
    op.drop_table("billing_payers")
