"""Creates the alerts of budgets, and reads those that refuse requests.

One process creates alerts: with PostgreSQL, the leader. The spend is summed up at most for the
share `LOAD_MAX` of the time, so a large database, where this takes long, is asked less often.
"""

import time
from collections.abc import Callable
from datetime import datetime

import msgspec

from service.core.budgets.enforcement import REFRESH_SECONDS, BudgetEnforcer
from service.core.budgets.outbox import EVENT_TYPE, Alert, create_alerts
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.telemetry import Metrics, log
from service.workers.background import PeriodicWorker

EVALUATION_SECONDS = 2.0
LOAD_MAX = 0.05
GRACE_SECONDS = 0.5  # maximum wait for a tick at shutdown


class BudgetEvaluatorStatistics(msgspec.Struct, frozen=True):
    """`alerts`: created since the start. `seconds`: duration of the last evaluation."""

    alerts: int
    seconds: float
    failures: int


class BudgetEvaluator(PeriodicWorker):
    """Evaluates all budgets every `EVALUATION_SECONDS`. `deliver`: alerts have a receiver.

    `credit_nano_usd`: the balance of a wallet below which there is an alert.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        deliver: bool,
        credit_nano_usd: int | None = None,
        seconds: float = EVALUATION_SECONDS,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("budgets", self.evaluate_budgets, seconds, grace_seconds=GRACE_SECONDS)
        self._database, self._metrics, self._deliver = database, metrics, deliver
        self._credit_nano_usd = credit_nano_usd
        self._clock, self._monotonic = clock, monotonic
        self._alerts, self._seconds, self._next_at = 0, 0.0, 0.0

    def statistics(self) -> BudgetEvaluatorStatistics:
        """An immutable snapshot of the counters."""
        return BudgetEvaluatorStatistics(self._alerts, self._seconds, self._task.failures)

    async def evaluate_budgets(self) -> None:
        """Create the alerts that are due. Raises `DatabaseUnavailable`."""
        begun = self._monotonic()
        if begun < self._next_at:
            return
        alerts = await create_alerts(
            self._database,
            self._clock(),
            deliver=self._deliver,
            credit_nano_usd=self._credit_nano_usd,
        )
        ended = self._monotonic()
        self._seconds = ended - begun
        self._next_at = ended + self._seconds / LOAD_MAX
        for alert in alerts:
            self._alerts += 1
            self._metrics.budget_alerts.inc()
            _log_alert(alert)


def _log_alert(alert: Alert) -> None:
    body = msgspec.json.decode(alert.body)
    if body["type"] == EVENT_TYPE:
        event, names = "budget.reached", ["budget", "subject", "threshold", "spent_usd"]
    else:
        event, names = "credit_alert.created", ["user_id", "balance_usd"]
    fields = {name: body["data"][name] for name in ("alert_id", *names, "amount_usd")}
    log.warning(event, **fields)


class BudgetRefresherStatistics(msgspec.Struct, frozen=True):
    """`failures`: failed ticks in a row."""

    failures: int


class BudgetRefresher(PeriodicWorker):
    """Reads the budgets that refuse requests, in every process."""

    def __init__(self, enforcer: BudgetEnforcer, seconds: float = REFRESH_SECONDS) -> None:
        super().__init__("budget refresh", enforcer.refresh, seconds, grace_seconds=GRACE_SECONDS)

    def statistics(self) -> BudgetRefresherStatistics:
        """An immutable snapshot of the counters."""
        return BudgetRefresherStatistics(self._task.failures)
