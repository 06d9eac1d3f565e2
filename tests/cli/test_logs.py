"""`kotae logs`: list and show log rows."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from service.core.errors import KotaeError, NotFound
from service.core.records import Status
from tests.command import command
from tests.conftest import Serve, Service
from tests.records import build_intent, build_outcome
from tests.rows import write


async def start(serve: Serve) -> Service:
    """A service with three rows of two users."""
    service, now = await serve(), datetime.now(UTC)
    rows = [
        build_outcome(
            build_intent(at=at, user_id=user_id, prompt=f"\x1b[31m Question {user_id}?"),
            status=status,
            response_time_ms=milliseconds,
        )
        for at, user_id, status, milliseconds in [
            (now - timedelta(minutes=3), "ann", Status.COMPLETED, 30),
            (now - timedelta(minutes=2), "bob", Status.TIMEOUT, 20),
            (now - timedelta(minutes=1), "ann", Status.PROVIDER_ERROR, 10),
        ]
    ]
    await write(service.services.database, rows)
    return service


async def list_milliseconds(service: Service, *options: str) -> list[int]:
    """The response times of the rows that are listed."""
    lines = (await command("logs", "--json", "--url", service.url, *options)).splitlines()
    return [json.loads(line)["response_time_ms"] for line in lines]


async def test_rows_are_listed_with_filters(serve: Serve) -> None:
    """Filters are those of `GET /ai/logs`; the newest, or the largest, is the last line."""
    service = await start(serve)

    assert await list_milliseconds(service) == [30, 20, 10]
    assert await list_milliseconds(service, "--status", "error", "--user", "ann") == [10]
    assert await list_milliseconds(service, "--user", "ann", "--user", "bob", "--min-ms", "20") == [
        30,
        20,
    ]
    assert await list_milliseconds(service, "-q", "question BOB") == [20]
    assert await list_milliseconds(service, "--until", "-1h") == []
    assert await list_milliseconds(service, "--order", "response_time_ms", "--since", "-1d") == [
        10,
        20,
        30,
    ]


async def test_rows_are_a_table(serve: Serve) -> None:
    """The table has a header and no characters that control the terminal."""
    service = await start(serve)
    header, *lines = (await command("logs", "--url", service.url)).splitlines()

    assert header.split()[:3] == ["ID", "TIME", "USER"]
    assert [line.split()[2] for line in lines] == ["ann", "bob", "ann"]
    assert "\x1b" not in "".join(lines)


async def test_no_row_is_a_hint(serve: Serve) -> None:
    """An empty list says so."""
    service = await start(serve)

    assert "no answers match" in await command("logs", "--user", "nobody", "--url", service.url)


async def test_unknown_filter_is_an_error(serve: Serve) -> None:
    """The valid statuses are listed."""
    service = await start(serve)

    with pytest.raises(KotaeError, match="timeout"):
        await command("logs", "--status", "failed", "--url", service.url)


async def test_row_is_shown_completely(serve: Serve) -> None:
    """`show` prints the fields of a row, its texts and the titles of its sources."""
    service = await serve(seeded=True)
    question = {"prompt": "返品は何日以内にできますか？"}
    answer = (await service.client.post("/ai/test", json=question)).json()

    shown = await command("logs", "show", answer["id"], "--url", service.url)
    as_json = await command("logs", "show", answer["id"], "--json", "--url", service.url)

    assert json.loads(as_json) == answer
    assert question["prompt"] in shown
    assert answer["response"] in shown
    assert f"source [1]: {answer['sources'][0]['title']}" in shown
    assert f"estimated_cost: {answer['estimated_cost']}" in shown


async def test_unknown_row_is_not_found(serve: Serve) -> None:
    """An id that no answer has is an error with exit code 1."""
    service = await start(serve)

    with pytest.raises(NotFound):
        await command("logs", "show", "0" * 36, "--url", service.url)
