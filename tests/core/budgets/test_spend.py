"""The spend of budgets equals the sums of the rows."""

from datetime import datetime, timedelta

import pytest

from service.core.auth import store as auth_store
from service.core.auth.principals import BOOTSTRAP
from service.core.budgets.budget import Period, compute_window
from service.core.budgets.spend import NOTHING, Spend, describe_budgets, read_spends
from service.core.database.engine import Database
from service.core.ports import QuotaLimits
from tests.access import create_key
from tests.budgets import NOON, build_budget
from tests.core.accounting.test_rollups import ATTEMPTS
from tests.records import build_intent, build_outcome, build_outcome_of_attempts
from tests.rows import write

pytestmark = pytest.mark.every_database


async def test_each_subject_has_the_spend_of_its_rows(database: Database) -> None:
    """Users, keys with their lineage, plans, models of attempts, and everything."""
    await auth_store.put_plan(database, BOOTSTRAP, "team", QuotaLimits())
    await auth_store.put_user(database, BOOTSTRAP, "b", plan="team")
    first = await create_key(database)
    second = await auth_store.rotate_key(database, BOOTSTRAP, first.id, grace_seconds=0)
    await write(
        database,
        [
            build_outcome(build_intent(at=NOON, user_id="a", key_id=first.id), cost_nano_usd=1),
            build_outcome(build_intent(at=NOON, user_id="a", key_id=second.id), cost_nano_usd=20),
            build_outcome(build_intent(at=NOON, user_id="a"), cost_nano_usd=None),
            build_outcome_of_attempts(*ATTEMPTS, intent=build_intent(at=NOON, user_id="b")),
        ],
    )
    expected = {
        "user:a": Spend(21, 1),
        f"key:{first.id}": Spend(21, 0),
        "plan:team": Spend(570, 0),
        "plan:default": Spend(21, 1),
        "model:x": Spend(70, 0),
        "model:gone": NOTHING,
        "all": Spend(591, 1),
    }
    budgets = [build_budget(id=subject, subject=subject) for subject in expected]
    async with database.read_session() as session:
        assert await read_spends(session, budgets, compute_window(Period.DAY, NOON)) == expected


@pytest.mark.parametrize(
    ("period", "at", "spent"),
    [
        (Period.DAY, NOON, 1500),
        (Period.DAY, NOON + timedelta(days=1), 0),
        (Period.DAY, NOON.replace(hour=0), 1500),
        (Period.MONTH, NOON.replace(day=31), 1500),
        (Period.MONTH, NOON.replace(month=4), 0),
    ],
)
async def test_a_window_has_its_own_spend(
    database: Database, period: Period, at: datetime, spent: int
) -> None:
    """Rows count in the window in which they were created."""
    await write(database, [build_outcome(build_intent(at=NOON))])
    async with database.read_session() as session:
        spends = await read_spends(session, [build_budget()], compute_window(period, at))
    assert spends["b"].nano_usd == spent


async def test_budgets_are_described_with_their_current_window(database: Database) -> None:
    """Amount, spend, percentage and window of a budget."""
    await write(database, [build_outcome(build_intent(at=NOON), cost_nano_usd=999)])
    async with database.read_session() as session:
        (described,) = await describe_budgets(session, [build_budget()], NOON)
    assert (described.amount_usd, described.current.spent_usd) == ("0.000001", "0.000000999")
    assert (described.current.percent, described.current.alerted) == (99, [])
    assert described.current.start == NOON.replace(hour=0)
