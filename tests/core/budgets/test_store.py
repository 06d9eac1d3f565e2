"""Budgets: creation, changes, deletion."""

import msgspec
import pytest
import sqlalchemy as sa

from service.core.audit_log import AuditFilter, list_entries
from service.core.auth import store as auth_store
from service.core.auth.principals import BOOTSTRAP
from service.core.budgets import store
from service.core.budgets.budget import BudgetAction, Period
from service.core.database.engine import Database
from service.core.database.tables import quota_totals
from service.core.errors import BudgetExists, BudgetsFull, NotFound
from service.core.ports import QuotaLimits
from tests.access import create_key
from tests.budgets import create_budget
from tests.records import build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database


async def test_a_budget_is_read_as_it_was_created(database: Database) -> None:
    """The row has what was given; thresholds are sorted and distinct."""
    budget = await create_budget(database, "user:alice", thresholds=[100, 20, 100])
    assert budget.thresholds == (20, 100)
    async with database.read_session() as session:
        assert await store.read_budget(session, budget.id) == budget
        assert await store.find_by_name(session, "user-alice") == budget
        assert await store.list_budgets(session) == [budget]


async def test_the_budget_of_a_rotated_key_is_for_its_lineage(database: Database) -> None:
    """A budget of a key that replaced another one has the id of the first key."""
    first = await create_key(database)
    second = await auth_store.rotate_key(database, BOOTSTRAP, first.id, grace_seconds=0)
    budget = await create_budget(database, f"key:{second.id}", name="k")
    assert budget.subject == f"key:{first.id}"


@pytest.mark.parametrize("subject", ["plan:gone", "key:gone"])
async def test_unknown_subjects_are_not_found(database: Database, subject: str) -> None:
    """A budget for a plan or key that does not exist is refused, and leaves no row."""
    with pytest.raises(NotFound):
        await create_budget(database, subject)
    async with database.read_session() as session:
        assert await store.list_budgets(session) == []


async def test_users_and_the_default_plan_need_no_row(database: Database) -> None:
    """Users with JWTs have no row, and users without a plan have the default one."""
    await create_budget(database, "user:nobody")
    await create_budget(database, "plan:default")
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    await create_budget(database, "plan:team")


async def test_a_name_is_used_once(database: Database) -> None:
    """A second budget with a name is refused."""
    await create_budget(database)
    with pytest.raises(BudgetExists):
        await create_budget(database, "user:a", name="all")


async def test_the_number_of_budgets_is_limited(database: Database) -> None:
    """A budget beyond the maximum is refused."""
    new = store.NewBudget(name="a", subject="all", amount_nano_usd=1, period=Period.DAY)
    await store.create_budget(database, BOOTSTRAP, new, budgets_max=1)
    with pytest.raises(BudgetsFull):
        await store.create_budget(
            database, BOOTSTRAP, msgspec.structs.replace(new, name="b"), budgets_max=1
        )


async def test_a_change_leaves_other_values(database: Database) -> None:
    """Only the values that are given change."""
    budget = await create_budget(database)
    changed = await store.change_budget(database, BOOTSTRAP, budget.id, action=BudgetAction.REFUSE)
    assert (changed.action, changed.amount_nano_usd) == (BudgetAction.REFUSE, 1000)
    changed = await store.change_budget(
        database, BOOTSTRAP, budget.id, amount_nano_usd=5, thresholds=[9, 8]
    )
    assert (changed.action, changed.amount_nano_usd) == (BudgetAction.REFUSE, 5)
    assert changed.thresholds == (8, 9)


async def test_a_deleted_budget_leaves_no_charges(database: Database) -> None:
    """Its row and its totals are gone; those of users stay."""
    budget = await create_budget(database)
    await write(database, [build_outcome()])
    await store.delete_budget(database, BOOTSTRAP, budget.id)
    for work in (
        store.delete_budget(database, BOOTSTRAP, budget.id),
        store.change_budget(database, BOOTSTRAP, "x"),
    ):
        with pytest.raises(NotFound):
            await work
    async with database.read_session() as session:
        names = (await session.execute(sa.select(quota_totals.c.subject))).scalars().all()
    assert names == ["user:local"]


async def test_changes_are_in_the_audit_log(database: Database) -> None:
    """Creation, changes and deletion have an entry; a change of nothing has none."""
    budget = await create_budget(database, "user:a", name="b")
    for amount in (1000, 2000):
        await store.change_budget(database, BOOTSTRAP, budget.id, amount_nano_usd=amount)
    await store.delete_budget(database, BOOTSTRAP, budget.id)
    async with database.read_session() as session:
        page = await list_entries(session, AuditFilter(), limit=9)
    entries = [(entry.action, entry.target_id, entry.user_id) for entry in page.items]
    names = ("budget.deleted", "budget.changed", "budget.created")
    assert entries == [(name, "b", "a") for name in names]
    assert page.items[1].detail["new"]["amount_usd"] == "0.000002"
