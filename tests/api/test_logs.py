"""GET /ai/logs: pages, filters, tails, exports."""

import asyncio
import csv
import io
import json
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting import log as request_log
from service.core.accounting.log import LogFilter
from service.core.database.engine import Database, ReadSession
from service.core.pricing import Usage
from service.core.records import Outcome, Status, UsageSource
from tests.conftest import Serve, Service
from tests.records import intent, outcome

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
async def filled(serve: Serve) -> Service:
    """A service whose log has 25 rows, a minute apart, of users a and b in turn, committed out of order."""
    service = await serve()
    outcomes = [
        outcome(
            intent(at=START + timedelta(minutes=n), user_id="ab"[n % 2], model=f"m{n % 3}", prompt=f"prompt {n}"),
            status=Status.COMPLETED if n % 5 else Status.TIMEOUT,
        )
        for n in range(25)
    ]
    await write(service.rooms.database, outcomes[1::2] + outcomes[::2])
    return service


async def write(database: Database, outcomes: Sequence[Outcome]) -> int:
    """Insert rows as the writer does."""
    async with database.transaction() as session:
        return await request_log.apply(session, outcomes)


async def get(service: Service, **params: Any) -> dict[str, Any]:
    """One page."""
    response = await service.client.get("/ai/logs", params=params)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def numbers(page: dict[str, Any]) -> list[int]:
    """Which of the filled rows a page has."""
    return [int(item["prompt"].split()[1]) for item in page["items"]]


async def test_pages_go_from_newest_to_oldest_and_end(filled: Service) -> None:
    """Following next_cursor shows every row once, newest first; the last page has no cursor."""
    seen, cursor = [], None
    while True:
        page = await get(filled, limit=7, **({"cursor": cursor} if cursor else {}))
        seen += numbers(page)
        if (cursor := page["next_cursor"]) is None:
            break

    assert seen == list(range(24, -1, -1))


async def test_a_row_that_arrives_meanwhile_shifts_no_page(filled: Service) -> None:
    """Keyset pages do not repeat or skip a row when newer ones come."""
    first = await get(filled, limit=5)
    await write(filled.rooms.database, [outcome(intent(prompt="prompt 99"))])
    second = await get(filled, limit=5, cursor=first["next_cursor"])

    assert numbers(first) + numbers(second) == list(range(24, 14, -1))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"user_id": "a"}, range(24, -1, -2)),
        ({"model": "m1"}, [22, 19, 16, 13, 10, 7, 4, 1]),
        ({"status": "timeout"}, [20, 15, 10, 5, 0]),
        ({"endpoint": "/ai/stream"}, []),
        ({"since": "2026-03-01T00:20:00Z"}, range(24, 19, -1)),
        ({"until": "2026-03-01T00:03:00Z"}, [2, 1, 0]),
        ({"since": "2026-03-01T09:05:00+09:00", "until": "2026-03-01T00:07:00"}, [6, 5]),
        ({"user_id": "b", "status": "timeout"}, [15, 5]),
        ({"user_id": "' OR 1=1 --"}, []),
    ],
)
async def test_filters(filled: Service, params: dict[str, str], expected: Sequence[int]) -> None:
    """Each filter narrows, and they narrow together; since is inclusive, until exclusive."""
    assert numbers(await get(filled, **params)) == list(expected)


async def test_a_tail_misses_nothing_that_was_committed_late(filled: Service) -> None:
    """`after` follows the order of commit: a row that began early and ended late is still seen, once."""
    newest = (await get(filled, limit=1))["items"][0]["id"]
    at_the_end = await get(filled, after=newest)
    late = outcome(intent(at=START - timedelta(days=1), prompt="prompt 100"))
    await write(filled.rooms.database, [late, outcome(intent(prompt="prompt 101"))])

    seen = await get(filled, after=at_the_end["next_cursor"])
    again = await get(filled, after=seen["next_cursor"])

    assert numbers(seen) == [100, 101]
    assert (again["items"], again["next_cursor"]) == ([], seen["next_cursor"])


@pytest.mark.parametrize("params", [{"cursor": "x"}, {"after": "x"}, {"after": "01a2095b-6360-75d3-bf35-48878f818b4d"}])
async def test_a_cursor_of_somebody_else_s_is_400(filled: Service, params: dict[str, str]) -> None:
    """What this service did not give out is refused, not guessed at."""
    response = await filled.client.get("/ai/logs", params=params)

    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("limit", [0, 201, "many"])
async def test_a_page_has_a_greatest_size(filled: Service, limit: Any) -> None:
    """A limit out of bounds is a 422 problem."""
    response = await filled.client.get("/ai/logs", params={"limit": limit})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_a_poller_is_told_that_nothing_changed(filled: Service) -> None:
    """The same ETag gives 304 without a body, until a row is added."""
    first = await filled.client.get("/ai/logs")
    same = await filled.client.get("/ai/logs", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    await write(filled.rooms.database, [outcome(intent(prompt="prompt 50"))])
    changed = await filled.client.get("/ai/logs", headers={"If-None-Match": first.headers["etag"]})

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200


async def test_one_row(filled: Service) -> None:
    """GET /ai/logs/{id} is the item of the list; an unknown id is 404."""
    item = (await get(filled, limit=1))["items"][0]

    assert (await filled.client.get(f"/ai/logs/{item['id']}")).json() == item
    assert (await filled.client.get("/ai/logs/nothing")).status_code == 404


async def test_an_export_as_ndjson_has_every_row_that_fits(filled: Service) -> None:
    """One JSON object a line, newest first, filters in force."""
    response = await filled.client.get("/ai/logs", params={"user_id": "a", "limit": 1}, headers={"Accept": "application/x-ndjson"})

    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["prompt"] for line in response.text.splitlines()] == [f"prompt {n}" for n in range(24, -1, -2)]


async def test_an_export_as_csv_has_no_formula(serve: Serve) -> None:
    """A cell that a spreadsheet would run is neutralised; everything else is as it is in the log."""
    service = await serve()
    prompts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", 'a "quoted", and\nbroken line', "普通の質問"]
    await write(
        service.rooms.database, [outcome(intent(prompt=prompt, at=START + timedelta(minutes=n))) for n, prompt in enumerate(prompts)]
    )

    response = await service.client.get("/ai/logs", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))

    assert [row["prompt"] for row in reversed(rows)] == [f"'{prompt}" for prompt in prompts[:6]] + prompts[6:]
    assert rows[0]["estimated_cost"] == "0.0000015"
    assert rows[0]["created_at"] == "2026-03-01T00:07:00Z"


async def test_an_export_is_paged_inside(serve: Serve) -> None:
    """More rows than one page of the export come out once each."""
    service = await serve()
    await write(service.rooms.database, [outcome(intent(at=START + timedelta(seconds=n), prompt=f"prompt {n}")) for n in range(1203)])

    response = await service.client.get("/ai/logs", headers={"Accept": "application/x-ndjson"})

    assert [json.loads(line)["prompt"] for line in response.text.splitlines()] == [f"prompt {n}" for n in range(1202, -1, -1)]


async def test_a_row_is_written_once(database: Database) -> None:
    """A record that comes again changes nothing."""
    first, second = outcome(), outcome()

    assert await write(database, [first]) == 1
    assert await write(database, [first, second, second]) == 1
    async with database.reading() as session:
        assert len((await request_log.page(session, LogFilter(), limit=10)).items) == 2


async def test_the_log_has_what_ended_before_it_was_asked(serve: Serve) -> None:
    """An answer that was received is in the log that is asked for next."""
    service = await serve(seeded=True)

    for _ in range(5):
        answer = (await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})).json()
        assert (await service.client.get("/ai/logs", params={"limit": 1})).json()["items"][0] == answer


FILTERS = {"user_id": "x", "endpoint": "x", "model": "x", "status": "timeout"}
COMBINED = [dict(chosen) for size in range(1, 5) for chosen in combinations(FILTERS.items(), size)]


async def plans(database: Database, ask: Callable[[ReadSession], Awaitable[object]]) -> list[str]:
    """How SQLite finds what each statement of a question wants."""
    said: list[tuple[str, Any]] = []
    engine = database._reader.sync_engine

    def listen(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        said.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", listen)
    async with database.reading() as session:
        await ask(session)
    sa.event.remove(engine, "before_cursor_execute", listen)
    assert database.file
    with closing(sqlite3.connect(database.file)) as connection:
        explained = [connection.execute(f"EXPLAIN QUERY PLAN {sql}", given) for sql, given in said if sql.startswith("SELECT")]
        return ["; ".join(step[3] for step in steps) for steps in explained]


@pytest.mark.parametrize("which", COMBINED, ids="+".join)
@pytest.mark.parametrize("window", [{}, {"since": START, "until": START + timedelta(hours=1)}], ids=["ever", "hour"])
async def test_pages_follow_the_index_of_one_filter(database: Database, which: dict[str, str], window: dict[str, datetime]) -> None:
    """Whatever is combined, one index in the order of the page is followed: nothing is sorted, no table is scanned."""
    found = await plans(database, lambda session: request_log.page(session, LogFilter(**which, **window), limit=50))  # type: ignore[arg-type]

    leading = next(name for name in ("user_id", "status", "model", "endpoint") if name in which)
    assert len(found) == (2 if len(which) > 1 else 1)
    assert all(plan.startswith("SEARCH") and f"INDEX ix_request_logs_{leading}_id" in plan for plan in found), found
    assert all("; " not in plan for plan in found), found
    assert len(which) == 1 or "COVERING" in found[0]


@pytest.mark.parametrize("which", [{}, *COMBINED, {"since": START}], ids="+".join)
async def test_tails_follow_the_order_of_commit(filled: Service, which: dict[str, Any]) -> None:
    """A tail goes by `seq`, a user's by an index of it: it neither sorts nor reads what was there before."""
    database = filled.rooms.database
    first = (await get(filled, limit=1))["items"][0]["id"]
    found = await plans(database, lambda session: request_log.tail(session, LogFilter(**which), limit=50, after=first))

    expected = "ix_request_logs_user_id_seq (user_id=? AND seq>?" if "user_id" in which else "INTEGER PRIMARY KEY (rowid>?"
    assert all(expected in plan and "; " not in plan for plan in found[1:]), found


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"user_id": "a", "status": "timeout"}, [20, 10, 0]),
        ({"status": "timeout", "model": "m1"}, [10]),
        ({"status": "completed", "model": "m1", "endpoint": "/ai/test"}, [22, 19, 16, 13, 7, 4, 1]),
        ({"model": "m2", "endpoint": "/ai/stream"}, []),
        ({"status": "timeout", "model": "m1", "since": "2026-03-01T00:06:00Z"}, [10]),
    ],
)
async def test_a_page_ends_early_rather_than_look_at_everything(
    filled: Service, monkeypatch: pytest.MonkeyPatch, which: dict[str, str], expected: list[int]
) -> None:
    """With several filters a page may be short or empty and have a cursor: followed to the end, it shows every row once."""
    monkeypatch.setattr(request_log, "LOOK_MAX", 2)
    seen: list[int] = []
    pages, cursor = 0, None
    while True:
        page = await get(filled, **which, **({"cursor": cursor} if cursor else {}))
        seen, pages = seen + numbers(page), pages + 1
        if (cursor := page["next_cursor"]) is None:
            break
    exported = await filled.client.get("/ai/logs", params=which, headers={"Accept": "application/x-ndjson"})

    assert seen == expected
    assert pages > 1
    assert [int(json.loads(line)["prompt"].split()[1]) for line in exported.text.splitlines()] == expected


@pytest.mark.parametrize("which", [{"model": "m1"}, {"user_id": "b", "model": "m1"}, {"status": "timeout"}, {"model": "none"}])
async def test_a_tail_goes_on_where_it_stopped_looking(filled: Service, monkeypatch: pytest.MonkeyPatch, which: dict[str, str]) -> None:
    """A tail with filters looks at some rows at a time; its cursor goes on, and shows nobody the id of another's answer."""
    monkeypatch.setattr(request_log, "TAIL_LOOK_MAX", 3)
    everything = await get(filled, limit=200)
    ids = {item["id"]: item for item in everything["items"]}
    seen: list[int] = []
    after = next(item["id"] for item in everything["items"] if item["prompt"] == "prompt 1")  # the first that was committed
    for _ in range(10):
        page = await get(filled, after=after, limit=2, **which)
        seen, after = seen + numbers(page), page["next_cursor"]
        assert which.get("user_id") is None or ids[after]["user_id"] == which["user_id"]
    committed = [*range(3, 25, 2), *range(0, 25, 2)]
    fits = [
        n
        for n in committed
        if all(
            each == {"model": f"m{n % 3}", "user_id": "ab"[n % 2], "status": "completed" if n % 5 else "timeout"}[name]
            for name, each in which.items()
        )
    ]

    assert seen == fits


async def test_readers_of_the_log_do_not_wait_for_a_stuck_database(serve: Serve) -> None:
    """While the writer waits for a lock, the log is served without what is late."""
    service = await serve(seeded=True)
    async with service.rooms.database.transaction():
        await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
        async with asyncio.timeout(3):
            assert (await get(service))["items"] == []
    assert len(await service.rows()) == 1


async def totals(database: Database) -> dict[str, int]:
    """The sum of the totals."""
    names = ("answers", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_nano_usd", "unpriced")
    columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
    async with database.reading() as session:
        return dict((await session.execute(sa.text(f"SELECT {columns} FROM daily_totals"))).mappings().one())


async def sums(database: Database) -> dict[str, int]:
    """The same, made from the rows."""
    async with database.reading() as session:
        query = """SELECT count(*) AS answers, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
            coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens, coalesce(sum(cost_nano_usd), 0) AS cost_nano_usd,
            coalesce(sum(cost_nano_usd IS NULL), 0) AS unpriced FROM request_logs"""
        return dict((await session.execute(sa.text(query))).mappings().one())


def versions(seed: int) -> list[Outcome]:
    """What may be heard of one answer: that it was interrupted, an estimate, and the truth, twice."""
    begun = intent(at=START + timedelta(hours=seed), user_id="ab"[seed % 2])
    told = Usage(prompt_tokens=100 + seed, completion_tokens=50, cached_tokens=seed)
    return [
        outcome(begun, status=Status.INTERRUPTED, usage_source=UsageSource.UNKNOWN, usage=None, cost_nano_usd=None),
        outcome(begun, status=Status.CLIENT_GONE, usage_source=UsageSource.ESTIMATED, cost_nano_usd=seed),
        outcome(begun, usage=told, cost_nano_usd=1000 + seed),
        outcome(begun, usage=told, cost_nano_usd=1000 + seed),
    ]


async def test_records_in_any_order_and_number_give_the_same_log(database: Database) -> None:
    """Redelivery, reordering and late truth: rows end with what is known best, totals equal their sum at every step."""
    choose = random.Random(11)
    told = [version for seed in range(20) for version in versions(seed)]
    heard = told * 2
    choose.shuffle(heard)
    while heard:
        size = choose.randint(1, 9)
        batch, heard = heard[:size], heard[size:]
        await write(database, batch)
        assert await totals(database) == await sums(database)
    await write(database, told)

    async with database.reading() as session:
        rows = (await request_log.page(session, LogFilter(), limit=100)).items
    assert [(row.status, row.usage_source, row.prompt_tokens) for row in reversed(rows)] == [
        ("completed", "provider", 100 + seed) for seed in range(20)
    ]
    assert await totals(database) == await sums(database)


async def test_what_is_known_is_not_forgotten(database: Database) -> None:
    """A record that knows less, or as much, changes nothing."""
    unknown, estimated, truth, _ = versions(1)
    for record in (truth, estimated, unknown):
        await write(database, [record])

    async with database.reading() as session:
        row = (await request_log.page(session, LogFilter(), limit=1)).items[0]
    assert (row.usage_source, row.estimated_cost) == ("provider", "0.000001001")
