"""The health of a provider: after a failure it has a cool-down, and then one probe at a time.

While a provider cools down, routes prefer their other targets. The first call after that is a
probe: the others go on to avoid the provider until the probe has received something. Cool-downs
grow with the failures in a row, with jitter, so that replicas do not probe together; a provider's
`Retry-After` makes them longer.
"""

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from service.core.errors import ProviderError, ProviderRejected, retry_delay

COOL_DOWN_SECONDS, COOL_DOWN_SECONDS_MAX = 1, 60  # after the first failure, and at most
PROBE_SECONDS = 30  # after which another probe may begin, should one not have ended
RETRY_AFTER_SECONDS_MAX = 3600  # of a Retry-After that is respected


class HealthState(StrEnum):
    """The state of a provider."""

    OK = "ok"  # the last call that ended was answered, or there was none
    COOLING = "cooling"  # a failure, not long ago
    PROBING = "probing"  # the next call is the probe, or the probe is in progress


class ProviderStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot.

    `failures`: in a row. `reason`: the code of the last one. `retry_seconds`: the rest of the
    cool-down.
    """

    state: HealthState
    failures: int
    reason: str | None
    retry_seconds: float


class ProviderHealth:
    """The health of one provider. `failures`: in a row. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failures = 0
        self._reason: str | None = None
        self._cool_until = 0.0
        self._probe_until = 0.0

    @property
    def cool_until(self) -> float:
        """The end of the cool-down, of the clock."""
        return self._cool_until

    def is_available(self) -> bool:
        """Whether a call may begin: no cool-down, and no probe in progress."""
        return not self.failures or self._clock() >= max(self._cool_until, self._probe_until)

    def begin_call(self) -> None:
        """Note that a call begins or is planned, which may be the probe."""
        if self.failures and (now := self._clock()) >= self._cool_until:
            self._probe_until = now + PROBE_SECONDS

    def record_success(self) -> None:
        """Note that the provider answers."""
        self.failures, self._probe_until, self._reason = 0, 0.0, None

    def end_call(self, error: BaseException | None) -> None:
        """Note the end of a call. What says nothing about the provider only ends the probe."""
        if error is None or isinstance(error, ProviderRejected):
            self.record_success()
        elif isinstance(error, ProviderError):
            self._record_failure(error)
        else:
            self._probe_until = 0.0

    def statistics(self) -> ProviderStatistics:
        """Return an immutable snapshot."""
        rest = max(0.0, self._cool_until - self._clock()) if self.failures else 0.0
        state = HealthState.COOLING if rest else HealthState.PROBING
        return ProviderStatistics(
            state if self.failures else HealthState.OK,
            self.failures,
            self._reason,
            round(rest, 1),
        )

    def _record_failure(self, error: ProviderError) -> None:
        """Begin or extend the cool-down. Failures of concurrent calls count once."""
        now = self._clock()
        self._reason, self._probe_until = error.code, 0.0
        if now >= self._cool_until or not self.failures:
            self.failures += 1
            self._cool_until = now + retry_delay(
                self.failures,
                first_seconds=COOL_DOWN_SECONDS,
                seconds_max=COOL_DOWN_SECONDS_MAX,
            )
        requested = min(error.retry_after_requested or 0, RETRY_AFTER_SECONDS_MAX)
        self._cool_until = max(self._cool_until, now + requested)
