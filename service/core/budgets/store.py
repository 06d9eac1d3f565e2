"""Budgets in the database.

A budget applies to whole windows, days or months in UTC, also to the one in which it was created.
Its name, subject and period do not change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.auth.store import DEFAULT_PLAN
from service.core.budgets.budget import THRESHOLDS, Budget, BudgetAction, Period, SubjectKind
from service.core.budgets.charges import count_earlier_usage, remove_usage
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import api_keys, budgets, plans
from service.core.encoding import convert_row, create_id, utc_now
from service.core.errors import BudgetExists, BudgetsFull, NotFound
from service.core.pricing import format_usd

BUDGETS_MAX = 500


class NewBudget(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a budget to be created. `subject`: the id of a key, not its lineage."""

    name: str
    subject: str
    amount_nano_usd: int
    period: Period
    thresholds: Sequence[int] = THRESHOLDS
    action: BudgetAction = BudgetAction.ALERT


async def create_budget(
    database: Database, by: Principal, new_budget: NewBudget, *, budgets_max: int = BUDGETS_MAX
) -> Budget:
    """Create a budget.

    Raises `NotFound` for an unknown plan or key, `BudgetExists`, `BudgetsFull` and
    `DatabaseUnavailable`.
    """
    async with database.transaction() as session:
        names = (await session.execute(sa.select(budgets.c.name))).scalars().all()
        if new_budget.name in names:
            raise BudgetExists(f"there is a budget with the name {new_budget.name}")
        if len(names) >= budgets_max:
            raise BudgetsFull(f"there are {budgets_max} budgets, which is the maximum")
        now = utc_now()
        budget = Budget(
            id=create_id(now),
            name=new_budget.name,
            subject=await _resolve_subject(session, new_budget.subject),
            amount_nano_usd=new_budget.amount_nano_usd,
            period=new_budget.period,
            thresholds=tuple(sorted(set(new_budget.thresholds))),
            action=new_budget.action,
            created_at=now,
        )
        values = msgspec.to_builtins(budget) | {"created_at": now}
        await session.execute(sa.insert(budgets).values(values))
        await count_earlier_usage(session, budget)
        await _record(session, by, Action.BUDGET_CREATED, budget, _describe(budget))
    return budget


async def _record(
    session: Session, by: Principal, action: Action, budget: Budget, detail: dict[str, Any]
) -> None:
    user_id = budget.target if budget.kind is SubjectKind.USER else None
    await record_action(
        session, by.actor, action, target_id=budget.name, user_id=user_id, detail=detail
    )


def _describe(budget: Budget) -> dict[str, Any]:
    """The fields of a budget in the audit log."""
    return {
        "subject": budget.subject,
        "amount_usd": format_usd(budget.amount_nano_usd),
        "period": budget.period.value,
        "thresholds": list(budget.thresholds),
        "action": budget.action.value,
    }


async def _resolve_subject(session: Session, subject: str) -> str:
    """The subject with the lineage of a key. Raises `NotFound` for an unknown plan or key."""
    kind, _, target = subject.partition(":")
    if kind == SubjectKind.PLAN and target != DEFAULT_PLAN:
        query = sa.select(plans.c.name).where(plans.c.name == target)
        if (await session.execute(query)).first() is None:
            raise NotFound("no plan has this name")
    if kind == SubjectKind.KEY:
        query = sa.select(api_keys.c.lineage).where(api_keys.c.id == target)
        lineage = (await session.execute(query)).scalar()
        if lineage is None:
            raise NotFound("no key has this id")
        return f"{SubjectKind.KEY}:{lineage}"
    return subject


async def list_budgets(session: ReadSession, *, action: BudgetAction | None = None) -> list[Budget]:
    """All budgets by name, or those with an action. At most `BUDGETS_MAX`."""
    query = sa.select(budgets).order_by(budgets.c.name)
    if action is not None:
        query = query.where(budgets.c.action == action)
    return [_create_budget(row) for row in (await session.execute(query)).mappings()]


async def read_budget(session: ReadSession, budget_id: str) -> Budget:
    """A budget by its id. Raises `NotFound`."""
    return await _read_where(session, budgets.c.id == budget_id)


async def find_by_name(session: ReadSession, name: str) -> Budget:
    """A budget by its name. Raises `NotFound`."""
    return await _read_where(session, budgets.c.name == name)


async def _read_where(session: ReadSession, condition: sa.ColumnElement[bool]) -> Budget:
    row = (await session.execute(sa.select(budgets).where(condition))).mappings().first()
    if row is None:
        raise NotFound("there is no such budget")
    return _create_budget(row)


async def change_budget(
    database: Database,
    by: Principal,
    budget_id: str,
    *,
    amount_nano_usd: int | None = None,
    thresholds: Sequence[int] | None = None,
    action: BudgetAction | None = None,
) -> Budget:
    """Change a budget; None: unchanged. Raises `NotFound` and `DatabaseUnavailable`.

    Thresholds whose alert was created in a window are not reported again in it.
    """
    values: dict[str, Any] = {}
    if amount_nano_usd is not None:
        values["amount_nano_usd"] = amount_nano_usd
    if thresholds is not None:
        values["thresholds"] = sorted(set(thresholds))
    if action is not None:
        values["action"] = action.value
    async with database.transaction() as session:
        old = await read_budget(session, budget_id)
        if not values:
            return old
        await session.execute(sa.update(budgets).where(budgets.c.id == budget_id).values(**values))
        budget = await read_budget(session, budget_id)
        if budget != old:
            detail = {"old": _describe(old), "new": _describe(budget)}
            await _record(session, by, Action.BUDGET_CHANGED, budget, detail)
    return budget


async def delete_budget(database: Database, by: Principal, budget_id: str) -> Budget:
    """Delete a budget and return it; its alerts stay. Raises `NotFound`, `DatabaseUnavailable`."""
    async with database.transaction() as session:
        budget = await read_budget(session, budget_id)
        await session.execute(sa.delete(budgets).where(budgets.c.id == budget_id))
        await remove_usage(session, budget)
        await _record(session, by, Action.BUDGET_DELETED, budget, _describe(budget))
    return budget


def _create_budget(row: Mapping[Any, Any]) -> Budget:
    return convert_row(row, Budget)
