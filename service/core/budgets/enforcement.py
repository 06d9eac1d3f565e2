"""Budgets that refuse requests: further quota subjects of an answer.

The subject `budget:ID` is held and charged like those of users and keys, in every store of quotas,
so parallel requests never exceed it. A budget for a model applies if a target of the route is that
model; it is charged for the attempts of that model. An answer without such budgets costs one
comparison.

The budgets are read every `REFRESH_SECONDS`, and after changes in this process. While the database
is away, those that were read last remain in force.
"""

import time
from collections.abc import Callable, Iterable, Mapping

import sqlalchemy as sa
from cachetools import FIFOCache

from service.core.budgets.budget import Budget, BudgetAction, SubjectKind
from service.core.budgets.charges import format_plan, share_charge
from service.core.budgets.store import list_budgets
from service.core.database.engine import Database
from service.core.database.tables import users
from service.core.errors import DatabaseUnavailable
from service.core.ports import BUDGET, USER_PREFIX, QuotaSubject
from service.core.records import Outcome

REFRESH_SECONDS = 1.0
PLAN_SECONDS = 3.0  # how long the plan of a user is cached
PLANS_MAX = 10_000  # users whose plan is cached


class BudgetEnforcer:
    """The budgets in force. `on_added` is called when some were added after the first `refresh`.

    `is_active`: there are such budgets. `has_models`: some of them are for models.
    """

    def __init__(
        self,
        database: Database,
        on_added: Callable[[], None] = lambda: None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_active = self.has_models = False
        self._database, self._on_added, self._monotonic = database, on_added, monotonic
        self._names: frozenset[str] | None = None
        self._by_subject: Mapping[str, list[QuotaSubject]] = {}
        self._has_plans = False
        self._plans: FIFOCache[str, tuple[str, float]] = FIFOCache(PLANS_MAX)

    async def refresh(self) -> None:
        """Read the budgets. Raises `DatabaseUnavailable`."""
        async with self._database.read_session() as session:
            budgets = await list_budgets(session, action=BudgetAction.REFUSE)
        by_subject: dict[str, list[QuotaSubject]] = {}
        for budget in budgets:
            by_subject.setdefault(budget.subject, []).append(create_subject(budget))
        kinds = {budget.kind for budget in budgets}
        names = frozenset(budget.quota_name for budget in budgets)
        if self._names is not None and not names <= self._names:
            self._on_added()
        self._names = names
        self._by_subject = by_subject
        self._has_plans = SubjectKind.PLAN in kinds
        self.has_models = SubjectKind.MODEL in kinds
        self.is_active = bool(budgets)

    async def extend_subjects(
        self, subjects: tuple[QuotaSubject, ...], models: Iterable[str]
    ) -> tuple[QuotaSubject, ...]:
        """Add the budgets of these subjects, their plan, and these models.

        Raises `DatabaseUnavailable` if the plan of a user is needed and cannot be read.
        """
        names: list[str] = [SubjectKind.ALL, *(f"{SubjectKind.MODEL}:{model}" for model in models)]
        for subject in subjects:
            names.append(subject.name)
            if self._has_plans and subject.name.startswith(USER_PREFIX):
                names.append(await self._read_plan(subject.name.removeprefix(USER_PREFIX)))
        added = [
            budget for name in dict.fromkeys(names) for budget in self._by_subject.get(name, ())
        ]
        return (*subjects, *added)

    def list_shares(self, outcome: Outcome) -> dict[str, tuple[int, int]]:
        """What budgets for models are charged for an outcome: (tokens, nano-dollars) by name."""
        attempts = outcome.attempt_list or ()
        single = outcome.provider_model or outcome.intent.model
        charge = outcome.compute_charge()
        shares: dict[str, tuple[int, int]] = {}
        for subject, budgets in self._by_subject.items():
            kind, _, model = subject.partition(":")
            if kind == SubjectKind.MODEL:
                share = share_charge(charge, outcome.usage_source, attempts, single, model)
                shares |= {budget.name: share for budget in budgets}
        return shares

    async def _read_plan(self, user_id: str) -> str:
        """The subject of budgets for the plan of a user."""
        now, cached = self._monotonic(), self._plans.get(user_id)
        if cached is not None and now - cached[1] <= PLAN_SECONDS:
            return cached[0]
        query = sa.select(users.c.plan).where(users.c.id == user_id)
        try:
            async with self._database.read_session() as session:
                plan = format_plan((await session.execute(query)).scalar())
        except DatabaseUnavailable:
            if cached is None:
                raise
            return cached[0]
        self._plans[user_id] = (plan, now)
        return plan


def create_subject(budget: Budget) -> QuotaSubject:
    """The quota subject of a budget that refuses requests."""
    return QuotaSubject(budget.quota_name, BUDGET, budget.limits, budget.name)
