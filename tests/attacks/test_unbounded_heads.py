"""No part of a request head, and nothing that surrounds a body, may grow without a bound."""

import pytest

from tests.attacks.conftest import KEY
from tests.attacks.measure import attack
from tests.process import ServiceProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("endless_url", 414),
        ("endless_header_value", 431),
        ("endless_header_name", 431),
        ("endless_header_padding", 431),
        ("endless_headers", 431),
        ("endless_empty_lines", 431),
        ("endless_trailers", 401),
        ("endless_trailer_value", 401),
        ("endless_chunk_extension", 401),
        ("chunk_extensions", 401),
    ],
)
async def test_a_stranger_cannot_fill_memory(
    victim: ServiceProcess, program: str, status: int
) -> None:
    """Without a credential the request is refused, cheaply, and delays no other client."""
    report = await attack(victim, program, key=KEY)

    report.check(megabytes_max=20)
    assert report.outcome.statuses == {status: report.outcome.opened}
    assert report.outcome.closed == report.outcome.opened


@pytest.mark.parametrize(
    "program",
    ["endless_trailers", "endless_trailer_value", "endless_chunk_extension", "chunk_extensions"],
)
async def test_a_caller_cannot_fill_memory(victim: ServiceProcess, program: str) -> None:
    """With a credential the parts around a body are bounded as the head is: 431."""
    report = await attack(victim, program, key=KEY, known=True)

    report.check(megabytes_max=20)
    assert report.outcome.statuses == {431: report.outcome.opened}
    assert report.outcome.closed == report.outcome.opened


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "program", ["pipelined_requests", "pipelined_behind_a_stream", "pipelined_bodies"]
)
async def test_pipelined_requests_cannot_fill_memory(
    victim: ServiceProcess, program: str, known: bool
) -> None:
    """Of many pipelined requests few are buffered; then the connection is closed."""
    report = await attack(victim, program, key=KEY, known=known)

    report.check(megabytes_max=20)
    # 16 wait at a time; some are answered before the connection is closed.
    assert report.outcome.statuses.total() <= 32 * report.outcome.opened
    assert report.outcome.closed == report.outcome.opened
