"""indexes of large logs

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Four of the five replace a narrower one, so a write updates one more index.
OLD = (("user_id", "id"), ("endpoint", "id"), ("model", "id"), ("status", "id"))
NEW = (
    ("user_id", "id", "status", "model", "endpoint"),
    ("status", "id", "model", "endpoint"),
    ("model", "id", "status", "endpoint"),
    ("endpoint", "id", "status"),
    ("user_id", "seq"),
)


def upgrade() -> None:
    _replace(OLD, NEW)


def downgrade() -> None:
    _replace(NEW, OLD)


def _replace(old: tuple[tuple[str, ...], ...], new: tuple[tuple[str, ...], ...]) -> None:
    for columns in old:
        op.drop_index(f"ix_request_logs_{'_'.join(columns)}", "request_logs")
    for columns in new:
        op.create_index(f"ix_request_logs_{'_'.join(columns)}", "request_logs", list(columns))
