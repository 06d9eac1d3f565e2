"""What budgets count for refusing requests: charges to the quota subject `budget:ID`.

They are rows of `quota_totals`, which the quota loads like those of users and keys. The usage
before a budget existed is added in the transaction that creates it; from then on the writer adds
the charges of its rows. Transactions that write exclude each other, so every row is counted once.

As in quotas, unknown usage is charged as its upper bound. Two differences: the usage of a model
before its budget existed contains known costs only, and a row counts for the plan that its user has
when it is written.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from service.core.auth.store import DEFAULT_PLAN
from service.core.budgets.budget import BUDGET_PREFIX, Budget, Period, SubjectKind, compute_window
from service.core.database.constructs import is_listed, sum_exactly
from service.core.database.engine import ReadSession, Session
from service.core.database.tables import budgets, quota_totals, rollup_groups, rollups, users
from service.core.encoding import EPOCH, QUARTERS_PER_DAY, find_quarter
from service.core.ports import USER_PREFIX
from service.core.quota.windows import Starts, add_amount
from service.core.records import Attempt, UsageSource, compute_row_charge

Row = Mapping[str, Any]
Charges = dict[tuple[str, Starts], list[int]]
"""(requests, tokens, nano-dollars) by quota subject and windows."""
RowChange = tuple[int, Row, Starts, Sequence[Attempt]]
"""1 for an added row, -1 for a replaced one; the row, its windows, and its attempts if several."""

_TOTALS = ("requests", "tokens", "cost_nano_usd")


async def list_budget_charges(
    session: ReadSession, charges: Mapping[tuple[str, Starts], Sequence[int]],
    changes: Iterable[RowChange],
) -> Charges:  # fmt: skip
    """The charges to budgets, from those to users and keys and from the rows behind them."""
    query = sa.select(budgets.c.id, budgets.c.subject)
    names_by_subject: dict[str, list[str]] = {}
    for budget_id, subject in await session.execute(query):
        names_by_subject.setdefault(subject, []).append(BUDGET_PREFIX + budget_id)
    if not names_by_subject:
        return {}
    plans = await _read_plans(session, names_by_subject, [subject for subject, _ in charges])
    added: Charges = {}
    for (subject, starts), amount in charges.items():
        subjects = [subject]
        if subject.startswith(USER_PREFIX):
            subjects += [SubjectKind.ALL, *plans.get(subject, ())]
        for name in _list_names(names_by_subject, subjects):
            add_amount(added.setdefault((name, starts), [0, 0, 0]), amount)
    for sign, row, starts, attempts in changes:
        for model in list_models(row, attempts):
            for name in names_by_subject.get(f"{SubjectKind.MODEL}:{model}", ()):
                charge = compute_model_charge(row, attempts, model)
                total = added.setdefault((name, starts), [0, 0, 0])
                add_amount(total, [sign * value for value in charge])
    return added


def _list_names(names_by_subject: Mapping[str, list[str]], subjects: Iterable[str]) -> list[str]:
    return [name for subject in subjects for name in names_by_subject.get(subject, ())]


async def _read_plans(
    session: ReadSession, listed: Collection[str], subjects: Iterable[str]
) -> dict[str, list[str]]:
    """`plan:NAME` by `user:ID`, for the users of these quota subjects; if plans are listed."""
    if not any(subject.startswith(f"{SubjectKind.PLAN}:") for subject in listed):
        return {}
    user_ids = [
        subject.removeprefix(USER_PREFIX) for subject in subjects if subject.startswith(USER_PREFIX)
    ]
    query = sa.select(users.c.id, users.c.plan).where(is_listed(users.c.id, user_ids))
    plans = {row.id: row.plan for row in await session.execute(query)}
    return {
        USER_PREFIX + user_id: [format_plan(plans.get(user_id))] for user_id in user_ids
    }  # fmt: skip


def format_plan(plan: str | None) -> str:
    """The subject of budgets for the plan of a user; None: the user has none of their own."""
    return f"{SubjectKind.PLAN}:{plan or DEFAULT_PLAN}"


def list_models(row: Row, attempts: Sequence[Attempt]) -> list[str]:
    """The models that were called for a row."""
    if attempts:
        return list(dict.fromkeys(attempt.model for attempt in attempts))
    return [row["provider_model"] or row["model"]]


def compute_model_charge(row: Row, attempts: Sequence[Attempt], model: str) -> tuple[int, int, int]:
    """(requests, tokens, nano-dollars) that a row charges to a model it has called."""
    charge, usage_source = compute_row_charge(row), row["usage_source"]
    return 1, *share_charge(charge, usage_source, attempts, model, model)


def share_charge(
    charge: tuple[int, int],
    usage_source: str,
    attempts: Sequence[Attempt],
    single: str,
    model: str,
) -> tuple[int, int]:
    """The part of a charge (tokens, nano-dollars) for a model.

    `attempts`: if there were several; each model has its own, if the usage is known. `single`: the
    model of a single attempt.
    """
    if model not in ([attempt.model for attempt in attempts] or [single]):
        return 0, 0
    if not attempts or usage_source == UsageSource.UNKNOWN:
        return charge
    own = [attempt for attempt in attempts if attempt.model == model]
    tokens = sum(attempt.usage.total_tokens for attempt in own if attempt.usage is not None)
    return tokens, sum(attempt.cost_nano_usd or 0 for attempt in own)


async def count_earlier_usage(session: Session, budget: Budget) -> None:
    """Charge a new budget for the usage of this month. Called in the transaction of its row."""
    since = compute_window(Period.MONTH, budget.created_at).start
    if budget.kind is SubjectKind.MODEL:
        rows = await _read_model_usage(session, budget.target, find_quarter(since))
        if rows:
            name = budget.quota_name
            await session.execute(
                sa.insert(quota_totals), [{"subject": name, **row} for row in rows]
            )
        return
    totals = quota_totals.c
    sums = [sum_exactly(totals[name]) for name in _TOTALS]
    selected = (
        sa.select(totals.day, sa.literal(budget.quota_name), *sums)
        .where(totals.day >= f"{since:%Y-%m-%d}", _build_subject_filter(budget))
        .group_by(totals.day)
    )
    await session.execute(
        sa.insert(quota_totals).from_select(["day", "subject", *_TOTALS], selected)
    )


async def _read_model_usage(
    session: ReadSession, model: str, first_quarter: int
) -> list[dict[str, Any]]:
    """The usage of a model by day, from the rollups."""
    columns = rollups.c
    day_number = (columns.quarter // QUARTERS_PER_DAY).label("day_number")
    query = (
        sa.select(
            day_number,
            sum_exactly(columns.attempts),
            sum_exactly(columns.prompt_tokens + columns.completion_tokens),
            sum_exactly(columns.cost_nano_usd),
        )
        .join(rollup_groups, rollup_groups.c.id == columns.group_id)
        .where(columns.quarter >= first_quarter, rollup_groups.c.model == model)
        .group_by(day_number)
    )
    first = EPOCH.date().toordinal()
    return [
        {"day": str(EPOCH.date().fromordinal(first + number)),
         **dict(zip(_TOTALS, sums, strict=True))}
        for number, *sums in await session.execute(query)
    ]  # fmt: skip


def _build_subject_filter(budget: Budget) -> sa.ColumnElement[bool]:
    """The totals of quotas whose sum is the usage of a budget."""
    subject = quota_totals.c.subject
    is_user = sa.and_(subject >= USER_PREFIX, subject < USER_PREFIX[:-1] + chr(ord(":") + 1))
    if budget.kind is SubjectKind.ALL:
        return is_user
    if budget.kind is not SubjectKind.PLAN:
        return subject == budget.subject
    if budget.target == DEFAULT_PLAN:
        others = sa.select(sa.literal(USER_PREFIX).concat(users.c.id)).where(
            users.c.plan.is_not(None), users.c.plan != DEFAULT_PLAN
        )
        return sa.and_(is_user, subject.not_in(others))
    members = sa.select(sa.literal(USER_PREFIX).concat(users.c.id))
    return subject.in_(members.where(users.c.plan == budget.target))


async def remove_usage(session: Session, budget: Budget) -> None:
    """Remove the charges to a budget that is deleted."""
    since = compute_window(Period.MONTH, budget.created_at).start
    await session.execute(
        sa.delete(quota_totals).where(
            quota_totals.c.day >= f"{since:%Y-%m-%d}",
            quota_totals.c.subject == budget.quota_name,
        )
    )
