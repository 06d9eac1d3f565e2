"""Connections that are held or opened in large numbers must not keep other clients out."""

import pytest

from tests.attacks.conftest import KEY
from tests.attacks.measure import attack
from tests.process import ServiceProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "program",
    [
        "silent_connections",
        "slow_heads",
        "heads_without_end",
        "slow_bodies",
        "half_closed_connections",
    ],
)
async def test_held_connections_do_not_block_others(
    small_victim: ServiceProcess, program: str
) -> None:
    """Holding five times the allowed connections without a credential delays no other client."""
    report = await attack(small_victim, program, key=KEY, reconnect=True)

    report.check(megabytes_max=40)
    assert report.outcome.closed > 0


async def test_unread_responses_fill_no_memory(victim: ServiceProcess) -> None:
    """A client that does not read a thousand responses of a large file delays no other."""
    report = await attack(victim, "unread_responses", key=KEY, reconnect=True)

    report.check(megabytes_max=250)


async def test_connection_attempts_do_not_block_others(victim: ServiceProcess) -> None:
    """Connecting as often as possible without a credential delays no other client."""
    report = await attack(victim, "connection_attempts", key=KEY, reconnect=True)

    report.check(megabytes_max=40)
