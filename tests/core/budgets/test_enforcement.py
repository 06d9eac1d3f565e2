"""Which budgets apply to an answer, and what models are charged."""

from typing import Any

import pytest

from service.core.auth import store as auth_store
from service.core.auth.principals import BOOTSTRAP
from service.core.budgets import store
from service.core.budgets.budget import BudgetAction
from service.core.budgets.enforcement import PLAN_SECONDS, BudgetEnforcer
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.records import UsageSource
from tests.budgets import create_budget
from tests.core.accounting.test_rollups import ATTEMPTS
from tests.records import build_intent, build_outcome, build_outcome_of_attempts
from tests.rows import away

pytestmark = pytest.mark.every_database

USER, KEY = QuotaSubject.for_user("a"), QuotaSubject.for_key("k")
REFUSE = {"action": BudgetAction.REFUSE}


async def list_titles(enforcer: BudgetEnforcer, *models: str) -> list[str]:
    """The names of the budgets that apply to the user and the key."""
    subjects = await enforcer.extend_subjects((USER, KEY), models)
    assert subjects[:2] == (USER, KEY)
    return sorted(subject.title or "" for subject in subjects[2:])


async def open_enforcer(database: Database, **options: Any) -> BudgetEnforcer:
    """An enforcer that has read the budgets."""
    enforcer = BudgetEnforcer(database, **options)
    await enforcer.refresh()
    return enforcer


async def test_budgets_that_alert_are_not_enforced(database: Database) -> None:
    """Without budgets that refuse, nothing is added."""
    await create_budget(database)
    enforcer = await open_enforcer(database)
    assert (enforcer.is_active, enforcer.has_models) == (False, False)
    assert await list_titles(enforcer, "m") == []


async def test_the_budgets_of_user_key_plan_model_and_everything_apply(database: Database) -> None:
    """Those of others do not."""
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    await auth_store.put_user(database, BOOTSTRAP, "a", plan="team")
    for subject in ("all", "user:a", "user:b", "plan:team", "plan:default", "model:m", "model:n"):
        await create_budget(database, subject, **REFUSE)
    enforcer = await open_enforcer(database)
    assert enforcer.is_active
    assert await list_titles(enforcer, "m") == ["all", "model-m", "plan-team", "user-a"]
    assert await list_titles(enforcer, "x") == ["all", "plan-team", "user-a"]


async def test_a_subject_has_amount_period_and_name(database: Database) -> None:
    """The limit is that of the budget."""
    budget = await create_budget(database, **REFUSE)
    enforcer = await open_enforcer(database)
    (*_, subject) = await enforcer.extend_subjects((USER,), ())
    limits = QuotaLimits(cost_nano_usd_per_month=1000)
    assert subject == QuotaSubject(budget.quota_name, "budget", limits, "all")


async def test_additions_are_reported(database: Database) -> None:
    """A budget that begins to refuse is reported once; a change and a removal are not."""
    reports: list[int] = []
    first = await create_budget(database, **REFUSE)
    enforcer = await open_enforcer(database, on_added=lambda: reports.append(1))
    assert reports == []
    second = await create_budget(database, "user:a")
    await store.change_budget(database, BOOTSTRAP, second.id, action=BudgetAction.REFUSE)
    for _ in range(2):
        await enforcer.refresh()
    await store.change_budget(database, BOOTSTRAP, first.id, amount_nano_usd=5)
    await store.delete_budget(database, BOOTSTRAP, second.id)
    await enforcer.refresh()
    assert reports == [1]


async def test_another_plan_applies_after_a_while(database: Database) -> None:
    """The plan of a user is cached."""
    now = [0.0]
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    for name in ("team", "default"):
        await create_budget(database, f"plan:{name}", **REFUSE)
    enforcer = await open_enforcer(database, monotonic=lambda: now[0])
    assert await list_titles(enforcer) == ["plan-default"]
    await auth_store.put_user(database, BOOTSTRAP, "a", plan="team")
    now[0] = PLAN_SECONDS
    assert await list_titles(enforcer) == ["plan-default"]
    now[0] += 0.1
    assert await list_titles(enforcer) == ["plan-team"]


@pytest.mark.sqlite
async def test_without_a_database_known_budgets_stay_in_force(database: Database) -> None:
    """A refresh fails and changes nothing; a plan that is not known refuses the request."""
    now = [0.0]
    await create_budget(database, "plan:default", **REFUSE)
    enforcer = await open_enforcer(database, monotonic=lambda: now[0])
    assert await list_titles(enforcer) == ["plan-default"]
    await database.close()
    gone = Database(database._url)
    enforcer._database = gone
    now[0] = 10.0
    with away(gone):
        with pytest.raises(DatabaseUnavailable):
            await enforcer.refresh()
        assert await list_titles(enforcer) == ["plan-default"]
        with pytest.raises(DatabaseUnavailable):
            await enforcer.extend_subjects((QuotaSubject.for_user("b"),), ())
    await gone.close()


async def test_models_are_charged_for_their_own_attempts(database: Database) -> None:
    """A model that was not called is charged nothing, and an unknown usage to all."""
    names = {}
    for model in ("x", "y", "z"):
        budget = await create_budget(database, f"model:{model}", **REFUSE)
        names[budget.quota_name] = model
    await create_budget(database, **REFUSE)
    enforcer = await open_enforcer(database)
    assert enforcer.has_models

    def list_costs(outcome: Any) -> dict[str, int]:
        shares = enforcer.list_shares(outcome)
        return {names[name]: nano_usd for name, (_, nano_usd) in shares.items()}

    assert list_costs(build_outcome_of_attempts(*ATTEMPTS)) == {"x": 70, "y": 500, "z": 0}
    single = build_outcome(build_intent(model="alias"), provider_model="z", cost_nano_usd=7)
    assert list_costs(single) == {"x": 0, "y": 0, "z": 7}
    unknown = build_outcome(
        build_intent(model="z", held_tokens=1, held_nano_usd=9),
        usage_source=UsageSource.UNKNOWN,
        usage=None,
        cost_nano_usd=None,
    )
    assert list_costs(unknown) == {"x": 0, "y": 0, "z": 9}
