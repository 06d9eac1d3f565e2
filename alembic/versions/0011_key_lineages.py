"""the creator and the lineage of a key

Quotas are charged to the lineage, which rotation keeps: the totals of replaced keys are merged.

Revision ID: 0011
Revises: 0009
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None

_SET_LINEAGES = """
    WITH RECURSIVE chain(id, first) AS (
        SELECT id, id FROM api_keys
        WHERE id NOT IN (SELECT replaced_by FROM api_keys WHERE replaced_by IS NOT NULL)
        UNION
        SELECT api_keys.replaced_by, chain.first
        FROM api_keys JOIN chain ON api_keys.id = chain.id
        WHERE api_keys.replaced_by IS NOT NULL
    )
    UPDATE api_keys SET lineage = (SELECT first FROM chain WHERE chain.id = api_keys.id)
"""
_MERGE_TOTALS = """
    INSERT INTO quota_totals (day, subject, requests, tokens, cost_nano_usd)
    SELECT totals.day, 'key:' || api_keys.lineage, sum(totals.requests), sum(totals.tokens),
           sum(totals.cost_nano_usd)
    FROM api_keys JOIN quota_totals AS totals ON totals.subject = 'key:' || api_keys.id
    WHERE api_keys.lineage <> api_keys.id
    GROUP BY totals.day, api_keys.lineage
    ON CONFLICT (day, subject) DO UPDATE SET
        requests = quota_totals.requests + excluded.requests,
        tokens = quota_totals.tokens + excluded.tokens,
        cost_nano_usd = quota_totals.cost_nano_usd + excluded.cost_nano_usd
"""
_DELETE_MERGED = """
    DELETE FROM quota_totals
    WHERE subject IN (SELECT 'key:' || id FROM api_keys WHERE lineage <> id)
"""


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("made_by", sa.String(36)))
    op.add_column(
        "api_keys", sa.Column("lineage", sa.String(36), nullable=False, server_default="")
    )
    op.execute(_SET_LINEAGES)
    op.execute(_MERGE_TOTALS)
    op.execute(_DELETE_MERGED)


def downgrade() -> None:
    """The totals remain with the first key of a lineage."""
    op.drop_column("api_keys", "lineage")
    op.drop_column("api_keys", "made_by")
