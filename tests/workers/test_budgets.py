"""The evaluation of budgets in a running service."""

import pytest
from structlog.testing import capture_logs

from service.core.database.engine import Database
from service.core.telemetry import Metrics
from service.workers.budgets import LOAD_MAX, BudgetEvaluator
from tests.budgets import create_budget
from tests.records import build_outcome
from tests.rows import write
from tests.wallets import add_funds

pytestmark = pytest.mark.every_database


class Monotonic:
    """A clock that advances by half a second with each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        self.now += 0.5
        return self.now


async def test_alerts_are_counted(database: Database) -> None:
    """Each alert increments the metric, once."""
    metrics = Metrics()
    await create_budget(database)
    await write(database, [build_outcome(cost_nano_usd=800)])
    for _ in range(2):
        evaluator = BudgetEvaluator(database, metrics, deliver=False)
        await evaluator.evaluate_budgets()
    assert metrics.registry.get_sample_value("kotae_budget_alerts_total") == 2
    assert (evaluator.statistics().alerts, evaluator.statistics().failures) == (0, 0)


async def test_low_credit_is_logged(database: Database) -> None:
    """The line has the user and the balance."""
    await add_funds(database, 5)
    evaluator = BudgetEvaluator(database, Metrics(), deliver=False, credit_nano_usd=6)
    with capture_logs() as lines:
        await evaluator.evaluate_budgets()
    [line] = lines
    assert line["event"] == "credit_alert.created"
    assert (line["user_id"], line["balance_usd"]) == ("alice", "0.000000005")


async def test_slow_evaluations_are_less_frequent(database: Database) -> None:
    """After an evaluation of half a second, none begins for the time that limits its share."""
    clock = Monotonic()
    evaluator = BudgetEvaluator(database, Metrics(), deliver=False, monotonic=clock)
    await evaluator.evaluate_budgets()
    await create_budget(database)
    await write(database, [build_outcome(cost_nano_usd=800)])
    await evaluator.evaluate_budgets()
    assert evaluator.statistics().alerts == 0
    clock.now += 0.5 / LOAD_MAX
    await evaluator.evaluate_budgets()
    assert evaluator.statistics().alerts == 2
