"""What becomes of an outcome: its record goes to the journal and the queue, the quota is settled, the metrics move.

Synchronous, and without failure: whoever ends an answer may be past awaiting.
"""

from service.core.ports import Quota, RecordQueue
from service.core.records import Outcome, UsageSource
from service.core.telemetry import Metrics, log

UNPRICED_MAX = 1000  # models whose lack of a price has been warned of; callers choose the names


class Account:
    """Records outcomes. One per process."""

    def __init__(self, queue: RecordQueue, quota: Quota, metrics: Metrics) -> None:
        self._queue, self._quota, self._metrics = queue, quota, metrics
        self._unpriced: set[str] = set()

    def record(self, outcome: Outcome) -> None:
        """Hand the outcome over."""
        self._queue.finish(outcome)
        tokens, nano_usd = outcome.charge()
        self._quota.settle(outcome.intent.id, tokens=tokens, nano_usd=nano_usd)
        self._measure(outcome)

    def _measure(self, outcome: Outcome) -> None:
        metrics, intent, usage = self._metrics, outcome.intent, outcome.usage
        metrics.answers.labels(intent.endpoint, outcome.status, outcome.usage_source).inc()
        metrics.answer_seconds.labels(intent.endpoint).observe(outcome.response_time_ms / 1000)
        if outcome.first_token_ms is not None:
            metrics.first_token_seconds.labels(intent.endpoint).observe(outcome.first_token_ms / 1000)
        if usage and outcome.usage_source is not UsageSource.NONE:
            metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
            metrics.tokens.labels("completion").inc(usage.completion_tokens)
        if outcome.cost_nano_usd:
            metrics.cost_usd.inc(outcome.cost_nano_usd / 1e9)
        if usage and outcome.cost_nano_usd is None:
            metrics.unpriced.inc()
            if intent.model not in self._unpriced and len(self._unpriced) < UNPRICED_MAX:
                self._unpriced.add(intent.model)
                log.warning("model.unpriced", model=intent.model, remedy="give its price in KOTAE_PRICES")
