"""The recorder: writes intents and outcomes to the queue, settles quotas, and updates the metrics.

`record` is synchronous and does not fail: an answer may end where nothing can be awaited any more.
"""

from service.core.budgets.enforcement import BudgetEnforcer
from service.core.ports import Quota, RecordQueue
from service.core.records import EndedAttempt, Intent, Outcome, UsageSource
from service.core.telemetry import Metrics, log

UNPRICED_MAX = 1000  # models whose missing price was logged; callers choose the names


class Recorder:
    """Records answers and embedding calls. One per process.

    `slot`: of the replica, which the ids of its records contain; None: there is one process.
    """

    def __init__(
        self,
        queue: RecordQueue,
        quota: Quota,
        metrics: Metrics,
        slot: int | None = None,
        budgets: BudgetEnforcer | None = None,
    ) -> None:
        self.slot = slot
        self._queue, self._quota, self._metrics = queue, quota, metrics
        self._budgets = budgets
        self._unpriced: set[str] = set()

    def record_intent(self, intent: Intent) -> None:
        """Record the intent: there will be a row. Raises `Overloaded` and `JournalFull`."""
        self._queue.add_intent(intent)

    async def wait_synced(self) -> None:
        """Wait until the records so far survive a power loss, where that is configured."""
        await self._queue.wait_synced()

    def record_attempt(self, record: EndedAttempt) -> None:
        """Record an attempt that is followed by another one."""
        self._queue.add_attempt(record)

    def record_outcome(self, outcome: Outcome) -> None:
        """Record the outcome of an intent that was begun."""
        self._queue.add_outcome(outcome)
        tokens, nano_usd = outcome.compute_charge()
        budgets = self._budgets
        shares = budgets.list_shares(outcome) if budgets and budgets.has_models else None
        self._quota.settle(outcome.intent.id, tokens=tokens, nano_usd=nano_usd, shares=shares)
        self._update_metrics(outcome)

    def count_attempt(self, provider: str, code: str) -> None:
        """Count a finished attempt by its provider and the code of its error, or `ok`."""
        self._metrics.attempts.labels(provider, code).inc()

    def count_fallback(self, provider: str, code: str) -> None:
        """Count an attempt that another provider follows, by its provider and its error."""
        self._metrics.fallbacks.labels(provider, code).inc()

    def _update_metrics(self, outcome: Outcome) -> None:
        metrics, intent, usage = self._metrics, outcome.intent, outcome.usage
        metrics.answers.labels(intent.endpoint, outcome.status, outcome.usage_source).inc()
        metrics.answer_seconds.labels(intent.endpoint).observe(outcome.response_time_ms / 1000)
        if outcome.first_token_ms is not None:
            metrics.first_token_seconds.labels(intent.endpoint).observe(
                outcome.first_token_ms / 1000
            )
        if usage and outcome.usage_source is not UsageSource.NONE:
            metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
            metrics.tokens.labels("completion").inc(usage.completion_tokens)
        if outcome.cost_nano_usd:
            metrics.cost_usd.inc(outcome.cost_nano_usd / 1e9)
        if usage and outcome.cost_nano_usd is None:
            metrics.unpriced.inc()
            if intent.model not in self._unpriced and len(self._unpriced) < UNPRICED_MAX:
                self._unpriced.add(intent.model)
                log.warning(
                    "model.unpriced", model=intent.model, remedy="give its price in KOTAE_PRICES"
                )
