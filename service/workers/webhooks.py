"""Delivers alerts as webhooks. One process does it: with PostgreSQL, the leader.

A delivery is marked after the receiver has confirmed it. If the process dies in between, or another
replica leads meanwhile, the alert is sent again with the same id, by which the receiver recognizes
it. A slow receiver delays further alerts, and nothing else.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

import msgspec

from service.core.budgets.outbox import Alert, AlertState, list_due, record_delivery
from service.core.budgets.webhooks import WebhookFailed, WebhookReceiver
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.telemetry import Metrics, log
from service.workers.background import PeriodicWorker

CHECK_SECONDS = 1.0
AT_ONCE_MAX = 5  # attempts in progress
GRACE_SECONDS = 0.5  # maximum wait for a tick at shutdown


class WebhookSenderStatistics(msgspec.Struct, frozen=True):
    """`delivered`: alerts since the start. `failures`: failed ticks in a row."""

    delivered: int
    failures: int


class WebhookSender(PeriodicWorker):
    """Delivers the alerts that are due every `seconds`."""

    def __init__(
        self,
        database: Database,
        receiver: WebhookReceiver,
        metrics: Metrics,
        *,
        seconds: float = CHECK_SECONDS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__("webhooks", self.deliver_due, seconds, grace_seconds=GRACE_SECONDS)
        self._database, self._receiver, self._metrics = database, receiver, metrics
        self._clock = clock
        self._delivered = 0

    def statistics(self) -> WebhookSenderStatistics:
        """An immutable snapshot of the counters."""
        return WebhookSenderStatistics(self._delivered, self._task.failures)

    async def deliver_due(self) -> None:
        """Make an attempt for each alert that is due, for some at once.

        Raises `DatabaseUnavailable`.
        """
        async with self._database.read_session() as session:
            alerts = await list_due(session, self._clock(), AT_ONCE_MAX)
        results = await asyncio.gather(*map(self._attempt, alerts))
        for alert, failure in zip(alerts, results, strict=True):
            await self._record(alert, failure)

    async def _attempt(self, alert: Alert) -> WebhookFailed | None:
        try:
            await self._receiver.deliver(alert.id, alert.body, self._clock().timestamp())
        except WebhookFailed as failure:
            return failure
        return None

    async def _record(self, alert: Alert, failure: WebhookFailed | None) -> None:
        error = None if failure is None else str(failure)
        is_final = failure is not None and failure.is_final
        state = await record_delivery(
            self._database, alert, self._clock(), error=error, is_final=is_final
        )
        self._metrics.webhook_attempts.labels(state.value).inc()
        if state is AlertState.DELIVERED:
            self._delivered += 1
            log.info("alert.delivered", alert_id=alert.id, attempts=alert.attempts + 1)
        else:
            log.warning(
                "alert.delayed" if state is AlertState.PENDING else "alert.failed",
                alert_id=alert.id,
                attempts=alert.attempts + 1,
                error=error,
            )
