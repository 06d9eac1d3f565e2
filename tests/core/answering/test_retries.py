"""Retries of clients: which answers they attach to."""

from typing import Any

import pytest

from service.core.answering.retries import (
    LEFT_MAX,
    LEFT_USER_MAX,
    RETRY_WINDOW_SECONDS,
    RetryRegistry,
)
from service.core.answering.streams import Stream
from service.core.errors import KotaeError, ProviderBusy, ProviderCut, ReportedError
from service.core.records import Status, UsageSource
from tests.records import build_intent, build_outcome


class StepClock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> StepClock:
    """The time."""
    return StepClock()


@pytest.fixture
def registry(clock: StepClock) -> RetryRegistry:
    """An empty registry."""
    return RetryRegistry(clock)


def create_stream(user_id: str = "alice") -> Stream:
    """A running answer."""
    return Stream(build_intent(user_id=user_id), [])


def leave(registry: RetryRegistry, stream: Stream, fingerprint: bytes = b"f") -> None:
    """Register an answer whose reader leaves."""
    registry.register(fingerprint, stream).end_reading(delivered=False)


def end(stream: Stream, error: KotaeError | None = None, **fields: Any) -> Stream:
    """End an answer."""
    stream.finish(build_outcome(stream.intent, **fields), error)
    return stream


def test_a_retry_attaches_to_a_running_answer(registry: RetryRegistry) -> None:
    """Its reader has left."""
    stream = create_stream()
    leave(registry, stream)

    retriable = registry.attach(b"f")

    assert retriable
    assert retriable.stream is stream


def test_one_retry_attaches_at_a_time(registry: RetryRegistry) -> None:
    """The next one attaches when that one has left, too."""
    leave(registry, create_stream())
    first = registry.attach(b"f")

    assert first
    assert registry.attach(b"f") is None
    first.end_reading(delivered=False)
    assert registry.attach(b"f") is first


def test_an_answer_that_is_read_is_not_attached(registry: RetryRegistry) -> None:
    """Equal requests at the same time are separate questions."""
    registry.register(b"f", create_stream())

    assert registry.attach(b"f") is None


def test_a_delivered_answer_is_not_attached(registry: RetryRegistry) -> None:
    """The client has it."""
    registry.register(b"f", create_stream()).end_reading(delivered=True)

    assert registry.attach(b"f") is None
    assert len(registry) == 0


def test_other_requests_do_not_attach(registry: RetryRegistry) -> None:
    """The fingerprint differs."""
    leave(registry, create_stream())

    assert registry.attach(b"g") is None


def test_after_the_window_it_is_asked_again(registry: RetryRegistry, clock: StepClock) -> None:
    """Ten minutes after the start."""
    leave(registry, create_stream())
    clock.now = RETRY_WINDOW_SECONDS + 1

    assert registry.attach(b"f") is None


REPORTED = ReportedError(status=500, message="sorry", type=None, param=None, code=None)


def unbilled_error() -> ProviderCut:
    """A 500 with the provider's own error body."""
    error = ProviderCut("x")
    error.reported = REPORTED
    return error


@pytest.mark.parametrize(
    ("error", "fields", "expected"),
    [
        (None, {"status": Status.COMPLETED}, True),
        (None, {"status": Status.NO_CONTEXT}, True),
        (None, {"status": Status.CLIENT_GONE}, False),
        (None, {"status": Status.STOPPED}, False),
        (None, {"status": Status.INTERRUPTED}, False),
        (ProviderCut("x"), {"status": Status.PROVIDER_ERROR}, True),
        (ProviderBusy("x"), {"status": Status.PROVIDER_ERROR}, False),
        (unbilled_error(), {"status": Status.PROVIDER_ERROR}, False),
        (
            ProviderCut("x"),
            {"status": Status.PROVIDER_ERROR, "usage_source": UsageSource.NONE},
            False,
        ),
    ],
)
def test_only_what_may_be_billed_is_repeated(
    registry: RetryRegistry, error: KotaeError | None, fields: dict[str, Any], *, expected: bool
) -> None:
    """Cancelled answers and failures without cost are asked again."""
    stream = end(create_stream(), error, **fields)
    leave(registry, stream)

    assert (registry.attach(b"f") is not None) is expected
    assert len(registry) == 0


def test_the_number_is_bounded(registry: RetryRegistry) -> None:
    """Of one user and of all; the oldest are forgotten."""
    for n in range(LEFT_USER_MAX + 5):
        leave(registry, create_stream(), b"%d" % n)
    assert len(registry) == LEFT_USER_MAX
    assert registry.attach(b"4") is None
    for n in range(LEFT_MAX):
        leave(registry, create_stream(f"user{n}"), b"%d" % n)

    assert len(registry) == LEFT_MAX


def test_expired_answers_are_forgotten(registry: RetryRegistry, clock: StepClock) -> None:
    """At the next one that is left."""
    leave(registry, create_stream(), b"f")
    clock.now = RETRY_WINDOW_SECONDS + 1
    leave(registry, create_stream(), b"g")

    assert len(registry) == 1


def test_an_answer_is_found_without_attaching(registry: RetryRegistry, clock: StepClock) -> None:
    """Other replicas ask whether a retry would get an answer here; that changes nothing."""
    stream = create_stream()
    leave(registry, stream)
    answer_ids = [registry.find_answer(b"f") for _ in range(2)]
    unknown = registry.find_answer(b"g")
    clock.now = RETRY_WINDOW_SECONDS + 1

    assert answer_ids == [stream.intent.id] * 2
    assert (unknown, registry.find_answer(b"f")) == (None, None)
