"""Charges to budgets are the sums of the rows, from before and after their creation."""

import random
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import BUDGETS, audit_log
from service.core.auth import store as auth_store
from service.core.auth.principals import BOOTSTRAP
from service.core.budgets.budget import Budget
from service.core.budgets.charges import compute_model_charge, list_models
from service.core.database.engine import Database
from service.core.database.tables import quota_totals
from service.core.encoding import utc_now
from service.core.ports import QuotaLimits
from service.core.records import Outcome, UsageSource
from tests.access import create_key
from tests.budgets import create_budget
from tests.core.accounting.test_rollups import ATTEMPTS
from tests.records import build_intent, build_outcome, build_outcome_of_attempts
from tests.rows import write

pytestmark = pytest.mark.every_database


async def read_charge(database: Database, budget: Budget) -> tuple[int, int]:
    """(requests, nano-dollars) charged to a budget this month."""
    totals = quota_totals.c
    query = sa.select(totals.requests, totals.cost_nano_usd).where(
        totals.subject == budget.quota_name
    )
    async with database.read_session() as session:
        rows = (await session.execute(query)).all()
    return sum(row[0] for row in rows), sum(row[1] for row in rows)


def build_rows(key_id: str) -> list[Outcome]:
    """Rows of two users, one with a key, one with two attempts, one of unknown usage."""
    at = utc_now()
    return [
        build_outcome(build_intent(at=at, user_id="a", key_id=key_id), cost_nano_usd=1),
        build_outcome(build_intent(at=at, user_id="a", model="x"), cost_nano_usd=20),
        build_outcome_of_attempts(*ATTEMPTS, intent=build_intent(at=at, user_id="b")),
        build_outcome(
            build_intent(at=at, user_id="b", held_nano_usd=4000, held_tokens=1),
            usage_source=UsageSource.UNKNOWN,
            usage=None,
            cost_nano_usd=None,
        ),
    ]


async def create_budgets(database: Database, key_id: str) -> list[Budget]:
    """A budget of each kind."""
    subjects = ("user:a", f"key:{key_id}", "plan:team", "plan:default", "model:x", "all")
    return [
        await create_budget(database, subject, name=f"b{n}") for n, subject in enumerate(subjects)
    ]


async def test_each_subject_is_charged_for_its_rows(database: Database) -> None:
    """The writer charges budgets of users, keys, plans, models, and of everything."""
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    await auth_store.put_user(database, BOOTSTRAP, "b", plan="team")
    key = await create_key(database)
    created = await create_budgets(database, key.id)
    await write(database, build_rows(key.id))
    charges = [await read_charge(database, budget) for budget in created]
    assert charges == [(2, 21), (1, 1), (2, 4570), (2, 21), (2, 90), (4, 4591)]


async def test_earlier_usage_of_the_month_is_charged(database: Database) -> None:
    """A new budget has the charges of earlier rows; that of a model those of known cost."""
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    await auth_store.put_user(database, BOOTSTRAP, "b", plan="team")
    key = await create_key(database)
    await write(database, build_rows(key.id))
    created = await create_budgets(database, key.id)
    charges = [(await read_charge(database, budget))[1] for budget in created]
    assert charges == [21, 1, 4570, 21, 90, 4591]


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_of_records_gives_the_same_charges(database: Database, seed: int) -> None:
    """Late, repeated and replaced records, and budgets created in between, change nothing."""
    choose, at = random.Random(seed), utc_now()
    intents = [build_intent(at=at, user_id=choose.choice("ab"), held_nano_usd=77) for _ in range(8)]
    first = [
        build_outcome(
            intent, usage_source=UsageSource.UNKNOWN, usage=None, cost_nano_usd=None, response=""
        )
        for intent in intents
    ]
    final = [build_outcome(intent, cost_nano_usd=choose.randint(0, 99)) for intent in intents]
    records = [*first, *final, *final]
    choose.shuffle(records)
    created: list[Budget] = []
    for n, record in enumerate(records):
        if n % 8 == seed:
            created.append(await create_budget(database, name=f"b{n}"))
        await write(database, [record])

    costs = sum(outcome.cost_nano_usd or 0 for outcome in final)
    assert [await read_charge(database, budget) for budget in created] == [(8, costs)] * len(
        created
    )


async def test_the_audit_compares_charges_to_budgets(database: Database, tmp_path: Path) -> None:
    """Charges to users, keys and everything equal those of the quotas; a change is found."""
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    key = await create_key(database, "a")
    await create_budgets(database, key.id)
    earlier = build_outcome(build_intent(at=utc_now() - timedelta(days=40), user_id="a"))
    await write(database, [*build_rows(key.id), earlier])
    report = await audit_log(database, tmp_path)
    assert (report.different[BUDGETS], report.compared[BUDGETS]) == (0, 3)

    async with database.transaction() as session:
        await session.execute(
            sa.update(quota_totals)
            .where(quota_totals.c.subject.like("budget:%"))
            .values(cost_nano_usd=quota_totals.c.cost_nano_usd + 1)
        )
    report = await audit_log(database, tmp_path)
    assert report.different[BUDGETS] == 3
    assert "budget b5 on" in report.details[-1]
    assert "cost_nano_usd 4591 in the quotas, 4592 charged" in report.details[-1]


def test_attempts_of_several_models_are_charged_apart() -> None:
    """Each model is charged for its attempts; an unknown usage is charged to all of them."""
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "cost_nano_usd": 570}
    row = {"usage_source": UsageSource.PROVIDER, "provider_model": None, "model": "m"} | usage
    assert list_models(row, ATTEMPTS) == ["x", "y"]
    assert compute_model_charge(row, ATTEMPTS, "y") == (1, 15, 500)
    unknown = {"usage_source": UsageSource.UNKNOWN, "held_tokens": 3, "held_nano_usd": 4}
    assert compute_model_charge(unknown, ATTEMPTS, "x") == (1, 3, 4)
    assert list_models(row | {"provider_model": "z"}, ()) == ["z"]
