"""Budgets for tests."""

from datetime import UTC, datetime
from typing import Any

from service.core.auth.principals import BOOTSTRAP
from service.core.budgets import store
from service.core.budgets.budget import Budget, BudgetAction, Period
from service.core.database.engine import Database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def build_budget(**fields: Any) -> Budget:
    """Build a budget of 1,000 nano-dollars per day for everything; arguments set its fields."""
    defaults: dict[str, Any] = {
        "id": "b",
        "name": "b",
        "subject": "all",
        "amount_nano_usd": 1000,
        "period": Period.DAY,
        "created_at": NOON,
    }
    return Budget(**(defaults | fields))


async def create_budget(database: Database, subject: str = "all", **fields: Any) -> Budget:
    """Create a budget of 1,000 nano-dollars per month, named like its subject."""
    defaults: dict[str, Any] = {
        "name": subject.replace(":", "-"),
        "subject": subject,
        "amount_nano_usd": 1000,
        "period": Period.MONTH,
        "action": BudgetAction.ALERT,
    }
    return await store.create_budget(database, BOOTSTRAP, store.NewBudget(**(defaults | fields)))
