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
    id VARCHAR(36) NOT NULL,
    name VARCHAR(50) NOT NULL,
    subject VARCHAR(210) NOT NULL,
    amount_nano_usd BIGINT NOT NULL,
    period VARCHAR(5) NOT NULL,
    thresholds JSON NOT NULL,
    action VARCHAR(10) NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_budgets PRIMARY KEY (id),
    CONSTRAINT uq_budgets_name UNIQUE (name)
)
""",
    """
CREATE TABLE budget_alerts (
    id VARCHAR(36) NOT NULL,
    budget_id VARCHAR(36) NOT NULL,
    window_start DATETIME NOT NULL,
    threshold INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    state VARCHAR(10) NOT NULL,
    attempts INTEGER NOT NULL,
    next_at DATETIME,
    delivered_at DATETIME,
    error VARCHAR(200),
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
