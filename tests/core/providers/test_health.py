"""The health of a provider: cool-down, Retry-After, and one probe at a time."""

import pytest

from service.core.errors import (
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderRejected,
    ProviderUnreachable,
)
from service.core.providers.health import HealthState, ProviderHealth


class Clock:
    """A clock that stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of `health`."""
    return Clock()


@pytest.fixture
def health(clock: Clock) -> ProviderHealth:
    """The health of a provider that has not been called."""
    return ProviderHealth(clock)


def fail(health: ProviderHealth, error: ProviderError | None = None) -> None:
    """Make a call that fails."""
    health.begin_call()
    health.end_call(error or ProviderUnreachable())


def test_a_failure_begins_a_cool_down(health: ProviderHealth, clock: Clock) -> None:
    """After a failure the provider is not available for about a second."""
    assert health.is_available()
    fail(health)

    assert not health.is_available()
    assert health.statistics().state is HealthState.COOLING
    assert health.statistics().reason == "provider_unreachable"
    clock.now += 1.5
    assert health.is_available()


def test_there_is_one_probe_at_a_time(health: ProviderHealth, clock: Clock) -> None:
    """After the cool-down one call may begin; the others wait until it has received something."""
    fail(health)
    clock.now += 2
    health.begin_call()

    assert not health.is_available()
    assert health.statistics().state is HealthState.PROBING
    health.record_success()
    assert health.is_available()
    assert health.statistics() == ProviderHealth().statistics()


def test_a_cancelled_probe_lets_another_one_begin(health: ProviderHealth, clock: Clock) -> None:
    """A probe that ends without a result of the provider says nothing about it."""
    fail(health)
    clock.now += 2
    health.begin_call()
    health.end_call(TimeoutError())

    assert health.is_available()
    assert health.failures == 1


def test_cool_downs_grow_and_are_bounded(health: ProviderHealth, clock: Clock) -> None:
    """Each failed probe doubles the cool-down, up to a minute."""
    seconds = []
    for _ in range(12):
        fail(health)
        seconds.append(health.cool_until - clock.now)
        clock.now = health.cool_until

    assert seconds[0] <= 1.5
    assert 2 <= seconds[2] <= 6
    assert max(seconds) == seconds[-1] == 60


def test_concurrent_failures_count_once(health: ProviderHealth) -> None:
    """Calls that fail together are one failure."""
    for _ in range(100):
        fail(health)

    assert health.failures == 1


def test_retry_after_is_respected(health: ProviderHealth, clock: Clock) -> None:
    """The cool-down is not shorter than the Retry-After of any response, up to an hour."""
    fail(health)
    fail(health, ProviderBusy(retry_after_seconds=20))
    assert health.cool_until == clock.now + 20
    fail(health, ProviderBusy(retry_after_seconds=10**9))
    assert health.cool_until == clock.now + 3600


def test_only_failures_of_the_provider_count(health: ProviderHealth) -> None:
    """A rejected request is an answer; a broken one is a failure."""
    fail(health, ProviderRejected())
    assert health.is_available()
    fail(health, ProviderCut())
    assert not health.is_available()


def test_a_probe_that_never_ends_is_replaced(health: ProviderHealth, clock: Clock) -> None:
    """A planned probe that is not made does not keep others away for long."""
    fail(health)
    clock.now += 2
    health.begin_call()
    clock.now += 29
    assert not health.is_available()
    clock.now += 1
    assert health.is_available()
