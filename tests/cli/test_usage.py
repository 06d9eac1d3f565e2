"""`kotae usage`: sums over the log."""

import json

import pytest

from service.core.errors import KotaeError
from service.core.records import Status, UsageSource
from tests.command import command
from tests.conftest import Serve, Service
from tests.records import build_intent, build_outcome
from tests.rows import write


async def start(serve: Serve) -> Service:
    """A service with answers of two users."""
    service = await serve()
    unknown = {"usage": None, "usage_source": UsageSource.UNKNOWN, "cost_nano_usd": None}
    rows = [
        build_outcome(build_intent(user_id="ann"), cost_nano_usd=1000),
        build_outcome(build_intent(user_id="bob"), cost_nano_usd=2000),
        build_outcome(build_intent(user_id="bob"), status=Status.TIMEOUT, **unknown),
    ]
    await write(service.services.database, rows)
    return service


async def test_usage_is_a_table(serve: Serve) -> None:
    """The most expensive group is first; unknown costs have a column."""
    service = await start(serve)
    header, *lines = (await command("usage", "--by", "user_id", "--url", service.url)).splitlines()

    assert header.split()[:3] == ["USER_ID", "ANSWERS", "ERRORS"]
    assert [line.split()[:6] for line in lines] == [
        ["bob", "2", "1", "15", "0.000002", "1"],
        ["ann", "1", "15", "0.000001", "12", "12"],
    ]


async def test_usage_as_json(serve: Serve) -> None:
    """One object per line, with the start of its bucket."""
    service = await start(serve)
    output = await command("usage", "--bucket", "month", "--json", "--url", service.url)
    results = [json.loads(line) for line in output.splitlines()]

    assert sum(result["answers"] for result in results) == 3
    assert all(result["start_time"] for result in results)


async def test_unused_interval_is_a_hint(serve: Serve) -> None:
    """An interval without answers says so."""
    service = await start(serve)

    assert "no answers" in await command("usage", "--until", "-2h", "--url", service.url)


async def test_unknown_dimension_is_an_error(serve: Serve) -> None:
    """The valid dimensions are listed."""
    service = await start(serve)

    with pytest.raises(KotaeError, match="usage_source"):
        await command("usage", "--by", "team", "--url", service.url)
