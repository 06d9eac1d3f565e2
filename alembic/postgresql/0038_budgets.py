"""budgets and their alerts

Revision ID: 0038
Revises: 0037
"""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

runs_beside_previous = True

STATEMENTS = (
    """
CREATE TABLE budgets (
    id text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    amount_nano_usd bigint NOT NULL,
    period text COLLATE "C" NOT NULL,
    thresholds json NOT NULL,
    action text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT pk_budgets PRIMARY KEY (id),
    CONSTRAINT uq_budgets_name UNIQUE (name)
)
""",
    """
CREATE TABLE budget_alerts (
    id text COLLATE "C" NOT NULL,
    budget_id text COLLATE "C" NOT NULL,
    window_start timestamptz NOT NULL,
    threshold integer NOT NULL,
    body text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    state text COLLATE "C" NOT NULL,
    attempts integer NOT NULL,
    next_at timestamptz,
    delivered_at timestamptz,
    error text COLLATE "C",
    CONSTRAINT pk_budget_alerts PRIMARY KEY (id),
    CONSTRAINT uq_budget_alerts_budget_id_window_start_threshold
        UNIQUE (budget_id, window_start, threshold)
)
""",
    "CREATE INDEX ix_budget_alerts_state_next_at ON budget_alerts (state, next_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM quota_totals WHERE subject LIKE 'budget:%'")
    op.drop_table("budget_alerts")
    op.drop_table("budgets")
