"""Time limits of a connection, with a clock of the test's own."""

from typing import Any

import pytest

from service.http_server.connections import HttpLimits
from service.http_server.deadlines import Deadlines

LIMITS = HttpLimits()


class Exchange:
    """An exchange whose client is slow, or not."""

    def __init__(self, *, slow: bool) -> None:
        self.slow = slow

    def is_too_slow(self, now: float, limits: HttpLimits) -> bool:
        """Whether the body arrives too slowly."""
        return self.slow


def exceeded(deadlines: Deadlines, now: float, **state: Any) -> str | None:
    """The exceeded limit of a connection without a request, unless `state` differs."""
    values = {"unsent": 0, "in_head": False, "last": None, "active": None} | state
    return deadlines.find_exceeded(now, **values)


@pytest.mark.parametrize(
    ("state", "limit", "name"),
    [
        ({}, LIMITS.head_seconds, "idle_seconds"),
        ({"in_head": True}, LIMITS.head_seconds, "head_seconds"),
        ({"last": Exchange(slow=False)}, LIMITS.idle_seconds, "idle_seconds"),
    ],
    ids=["new", "head", "idle"],
)
def test_waiting_for_a_request_is_limited(state: dict[str, Any], limit: float, name: str) -> None:
    """A new connection, an incomplete head and an idle connection have their limits."""
    deadlines = Deadlines(LIMITS, now=100)

    assert exceeded(deadlines, 100 + limit, **state) is None
    assert exceeded(deadlines, 100 + limit + 1, **state) == name


@pytest.mark.parametrize(("slow", "name"), [(False, None), (True, "body_seconds")])
def test_a_body_is_limited(slow: bool, name: str | None) -> None:
    """While a request is answered only its body is limited, however long the answer takes."""
    exchange = Exchange(slow=slow)
    deadlines = Deadlines(LIMITS, now=0)

    assert exceeded(deadlines, 10_000, last=exchange, active=exchange) == name


def test_a_client_that_reads_slowly_is_not_dropped() -> None:
    """A client that reads anything within the limit may take as long as it needs."""
    deadlines = Deadlines(LIMITS, now=0)
    deadlines.stalled_since = 0
    progress = [exceeded(deadlines, 30 * n, unsent=1_000_000 - n) for n in range(100)]
    silence = exceeded(deadlines, 30 * 99 + LIMITS.send_seconds + 1, unsent=1_000_000 - 99)

    assert set(progress) == {None}
    assert silence == "send_seconds"


def test_closing_waits_for_the_client_to_read() -> None:
    """What was not sent yet has the same time as on any other connection."""
    deadlines = Deadlines(LIMITS, now=0)
    deadlines.begin_closing(0)

    assert exceeded(deadlines, 1, unsent=10) is None
    assert exceeded(deadlines, LIMITS.send_seconds, unsent=10) is None
    assert exceeded(deadlines, LIMITS.send_seconds + 2, unsent=10) == "send_seconds"


def test_closing_waits_for_the_client_to_close() -> None:
    """A closing connection is dropped some seconds after everything was sent."""
    deadlines = Deadlines(LIMITS, now=0)
    deadlines.begin_closing(0)

    assert exceeded(deadlines, LIMITS.linger_seconds) is None
    assert exceeded(deadlines, LIMITS.linger_seconds + 2) == "linger_seconds"
