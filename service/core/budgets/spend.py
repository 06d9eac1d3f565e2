"""The spend of budgets in their windows, from the rollups: the same sums as in the analytics.

Answers of unknown cost are not in the spend but counted beside it. A budget that refuses requests
counts their upper bound (`charges.py`), so it may refuse before its spend reaches the amount.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.auth.store import DEFAULT_PLAN
from service.core.budgets.budget import (
    Budget,
    Period,
    SubjectKind,
    Window,
    compute_percent,
    compute_window,
)
from service.core.database.constructs import is_listed, sum_exactly
from service.core.database.engine import ReadSession
from service.core.database.tables import api_keys, budget_alerts, rollup_groups, rollups, users
from service.core.encoding import find_quarter
from service.core.pricing import format_usd


class Spend(msgspec.Struct, frozen=True):
    """The sum of known costs, and the number of answers of unknown cost."""

    nano_usd: int
    unpriced: int


NOTHING = Spend(0, 0)


class CurrentSpend(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a budget in its current window, for the API. `alerted`: thresholds."""

    start: datetime
    end: datetime
    spent_usd: str
    percent: int
    unpriced: int
    alerted: list[int]


class BudgetObject(msgspec.Struct, frozen=True, kw_only=True):
    """A budget in the API."""

    id: str
    name: str
    subject: str
    amount_usd: str
    period: str
    thresholds: list[int]
    action: str
    created_at: datetime
    current: CurrentSpend


async def describe_budgets(
    session: ReadSession, listed: Sequence[Budget], at: datetime
) -> list[BudgetObject]:
    """The budgets with the spend of their current windows."""
    windows = {period: compute_window(period, at) for period in Period}
    spends: dict[str, Spend] = {}
    for period, window in windows.items():
        of_period = [budget for budget in listed if budget.period is period]
        spends |= await read_spends(session, of_period, window)
    alerted = await _read_alerted(session, [window.start for window in windows.values()])
    return [
        _describe(
            budget, windows[budget.period], spends[budget.id], alerted.get(budget.id, {})
        )
        for budget in listed
    ]  # fmt: skip


def _describe(
    budget: Budget, window: Window, spend: Spend, alerted: Mapping[datetime, list[int]]
) -> BudgetObject:
    return BudgetObject(
        id=budget.id,
        name=budget.name,
        subject=budget.subject,
        amount_usd=format_usd(budget.amount_nano_usd),
        period=budget.period.value,
        thresholds=list(budget.thresholds),
        action=budget.action.value,
        created_at=budget.created_at,
        current=CurrentSpend(
            start=window.start,
            end=window.end,
            spent_usd=format_usd(spend.nano_usd),
            percent=compute_percent(spend.nano_usd, budget.amount_nano_usd),
            unpriced=spend.unpriced,
            alerted=alerted.get(window.start, []),
        ),
    )


async def _read_alerted(
    session: ReadSession, starts: Sequence[datetime]
) -> dict[str, dict[datetime, list[int]]]:
    """The thresholds that have an alert, by budget and window, in ascending order."""
    columns = budget_alerts.c
    query = (
        sa.select(columns.budget_id, columns.window_start, columns.threshold)
        .where(columns.window_start.in_(starts))
        .order_by(columns.threshold)
    )
    alerted: dict[str, dict[datetime, list[int]]] = {}
    for budget_id, start, threshold in await session.execute(query):
        alerted.setdefault(budget_id, {}).setdefault(start, []).append(threshold)
    return alerted


async def read_spends(
    session: ReadSession, listed: Sequence[Budget], window: Window
) -> dict[str, Spend]:
    """The spend of each budget in a window, by its id: one query for each kind of subject."""
    by_kind: dict[SubjectKind, list[Budget]] = {}
    for budget in listed:
        by_kind.setdefault(budget.kind, []).append(budget)
    spends: dict[str, Spend] = {}
    for kind, of_kind in by_kind.items():
        query = _SELECTIONS[kind]([budget.target for budget in of_kind])
        sums = await _read_sums(session, query, window)
        spends |= {budget.id: sums.get(budget.target, NOTHING) for budget in of_kind}
    return spends


async def _read_sums(
    session: ReadSession, query: sa.Select[Any], window: Window
) -> dict[str, Spend]:
    columns = rollups.c
    in_window = query.where(
        columns.quarter >= find_quarter(window.start), columns.quarter < find_quarter(window.end)
    )
    return {
        target: Spend(nano_usd, unpriced)
        for target, nano_usd, unpriced in await session.execute(in_window)
    }


def _select_sums(target: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Sums of the rollups and their groups by a target."""
    columns: list[sa.ColumnElement[Any]] = [target, *_sum_columns()]
    joined = rollups.join(rollup_groups, rollup_groups.c.id == rollups.c.group_id)
    return sa.select(*columns).select_from(joined).group_by(target)


def _sum_columns() -> list[sa.ColumnElement[int]]:
    return [sum_exactly(rollups.c[name]) for name in ("cost_nano_usd", "unpriced")]


def _select_all(_: Iterable[str]) -> sa.Select[Any]:
    columns: list[sa.ColumnElement[Any]] = [sa.literal(""), *_sum_columns()]
    return sa.select(*columns)


def _select_users(targets: list[str]) -> sa.Select[Any]:
    user_id = rollup_groups.c.user_id
    return _select_sums(user_id).where(is_listed(user_id, targets))


def _select_models(targets: list[str]) -> sa.Select[Any]:
    model = rollup_groups.c.model
    return _select_sums(model).where(is_listed(model, targets))


def _select_keys(targets: list[str]) -> sa.Select[Any]:
    lineage = api_keys.c.lineage
    query = _select_sums(lineage).where(is_listed(lineage, targets))
    return query.join(api_keys, api_keys.c.id == rollup_groups.c.key_id)


def _select_plans(targets: list[str]) -> sa.Select[Any]:
    # Not a parameter: PostgreSQL compares the expressions of SELECT and GROUP BY.
    plan = sa.func.coalesce(users.c.plan, sa.literal_column(f"'{DEFAULT_PLAN}'"))
    query = _select_sums(plan).where(is_listed(plan, targets))
    return query.outerjoin(users, users.c.id == rollup_groups.c.user_id)


_SELECTIONS = {
    SubjectKind.ALL: _select_all,
    SubjectKind.USER: _select_users,
    SubjectKind.MODEL: _select_models,
    SubjectKind.KEY: _select_keys,
    SubjectKind.PLAN: _select_plans,
}
