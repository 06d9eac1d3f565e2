"""GET /ai/logs: pages, filters, tails, exports."""

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from service.core.accounting.log_pages import LogFilter, export_pages, read_page, read_tail
from service.core.accounting.rows import LoggedAnswer
from service.core.records import Status
from tests.access import SECRET, client, make_key
from tests.conftest import Serve, Service, shared_fixture, shared_loop
from tests.core.accounting.test_log_pages import COMBINED, explain_queries
from tests.problems import is_problem
from tests.records import (
    build_attempt,
    build_failed_attempt,
    build_intent,
    build_outcome,
    build_outcome_of_attempts,
)
from tests.rows import write

START = datetime(2026, 3, 1, tzinfo=UTC)


async def fill(service: Service) -> Service:
    """Insert 25 rows, a minute apart, of users a and b in turn, committed out of order."""
    outcomes = [
        build_outcome(
            build_intent(
                at=START + timedelta(minutes=n),
                user_id="ab"[n % 2],
                model=f"m{n % 3}",
                prompt=f"prompt {n}",
            ),
            status=Status.COMPLETED if n % 5 else Status.TIMEOUT,
        )
        for n in range(25)
    ]
    await write(service.services.database, outcomes[1::2] + outcomes[::2])
    return service


@pytest.fixture
async def filled(serve: Serve) -> Service:
    """A log of 25 rows a minute apart, of users a and b in turn, committed out of order."""
    return await fill(await serve())


@shared_fixture
async def shared_log(serve_shared: Serve) -> Service:
    """A service with these rows, for tests that only read."""
    return await fill(await serve_shared())


async def get_page(service: Service, **params: Any) -> dict[str, Any]:
    """One page."""
    response = await service.client.get("/ai/logs", params=params)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def list_numbers(page: dict[str, Any]) -> list[int]:
    """The numbers of the rows on a page."""
    return [int(item["prompt"].split()[1]) for item in page["items"]]


@shared_loop
async def test_pages_go_from_newest_to_oldest_and_end(shared_log: Service) -> None:
    """Following next_cursor lists every row once, newest first."""
    listed, cursor = [], None
    while True:
        page = await get_page(shared_log, limit=7, **({"cursor": cursor} if cursor else {}))
        listed += list_numbers(page)
        if (cursor := page["next_cursor"]) is None:
            break

    assert listed == list(range(24, -1, -1))


async def test_new_row_does_not_shift_pages(filled: Service) -> None:
    """Keyset pages neither repeat nor skip rows when newer ones arrive."""
    first = await get_page(filled, limit=5)
    await write(filled.services.database, [build_outcome(build_intent(prompt="prompt 99"))])
    second = await get_page(filled, limit=5, cursor=first["next_cursor"])

    assert list_numbers(first) + list_numbers(second) == list(range(24, 14, -1))


@shared_loop
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
async def test_filters(
    shared_log: Service, params: dict[str, str], expected: Sequence[int]
) -> None:
    """Filters combine; since is inclusive, until exclusive."""
    assert list_numbers(await get_page(shared_log, **params)) == list(expected)


async def test_tail_includes_rows_committed_late(filled: Service) -> None:
    """`after` follows the commit order: a row that started early and ended late is listed once."""
    newest = (await get_page(filled, limit=1))["items"][0]["id"]
    at_the_end = await get_page(filled, after=newest)
    late = build_outcome(build_intent(at=START - timedelta(days=1), prompt="prompt 100"))
    await write(filled.services.database, [late, build_outcome(build_intent(prompt="prompt 101"))])

    tail = await get_page(filled, after=at_the_end["next_cursor"])
    again = await get_page(filled, after=tail["next_cursor"])

    assert list_numbers(tail) == [100, 101]
    assert (again["items"], again["next_cursor"]) == ([], tail["next_cursor"])


@shared_loop
@pytest.mark.parametrize(
    "params", [{"cursor": "x"}, {"after": "x"}, {"after": "01a2095b-6360-75d3-bf35-48878f818b4d"}]
)
async def test_unknown_cursor_is_400(shared_log: Service, params: dict[str, str]) -> None:
    """An unknown cursor is refused."""
    response = await shared_log.client.get("/ai/logs", params=params)

    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


@shared_loop
@pytest.mark.parametrize("limit", [0, 201, "many"])
async def test_page_size_is_limited(shared_log: Service, limit: Any) -> None:
    """A limit out of bounds is a 422 problem."""
    response = await shared_log.client.get("/ai/logs", params={"limit": limit})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_unchanged_page_is_304(filled: Service) -> None:
    """An unchanged page is a 304 without a body, until a row is added."""
    first = await filled.client.get("/ai/logs")
    same = await filled.client.get(
        "/ai/logs", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    )
    await write(filled.services.database, [build_outcome(build_intent(prompt="prompt 50"))])
    changed = await filled.client.get("/ai/logs", headers={"If-None-Match": first.headers["etag"]})

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200


@shared_loop
async def test_single_row_equals_the_list_item(shared_log: Service) -> None:
    """GET /ai/logs/{id} is the item of the list; an unknown id is 404."""
    item = (await get_page(shared_log, limit=1))["items"][0]

    assert (await shared_log.client.get(f"/ai/logs/{item['id']}")).json() == item
    assert (await shared_log.client.get("/ai/logs/nothing")).status_code == 404


@shared_loop
async def test_ndjson_export_contains_every_matching_row(shared_log: Service) -> None:
    """One JSON object per line, newest first, filtered."""
    response = await shared_log.client.get(
        "/ai/logs", params={"user_id": "a", "limit": 1}, headers={"Accept": "application/x-ndjson"}
    )

    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["prompt"] for line in response.text.splitlines()] == [
        f"prompt {n}" for n in range(24, -1, -2)
    ]


async def test_csv_export_contains_no_formulas(serve: Serve) -> None:
    """Cells that a spreadsheet would evaluate are neutralised."""
    service = await serve()
    prompts = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\tx",
        "\rx",
        'a "quoted", and\nbroken line',
        "普通の質問",
    ]
    await write(
        service.services.database,
        [
            build_outcome(build_intent(prompt=prompt, at=START + timedelta(minutes=n)))
            for n, prompt in enumerate(prompts)
        ],
    )

    response = await service.client.get("/ai/logs", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))

    assert [row["prompt"] for row in reversed(rows)] == [
        f"'{prompt}" for prompt in prompts[:6]
    ] + prompts[6:]
    assert rows[0]["estimated_cost"] == "0.0000015"
    assert rows[0]["created_at"] == "2026-03-01T00:07:00Z"


async def test_export_spans_internal_pages(serve: Serve) -> None:
    """An export of more rows than one internal page contains each row once."""
    service = await serve()
    await write(
        service.services.database,
        [
            build_outcome(build_intent(at=START + timedelta(seconds=n), prompt=f"prompt {n}"))
            for n in range(1203)
        ],
    )

    response = await service.client.get("/ai/logs", headers={"Accept": "application/x-ndjson"})

    assert [json.loads(line)["prompt"] for line in response.text.splitlines()] == [
        f"prompt {n}" for n in range(1202, -1, -1)
    ]


async def test_log_contains_answers_that_ended_before_the_request(serve: Serve) -> None:
    """The log contains every answer that was received before the request."""
    service = await serve(seeded=True)

    for _ in range(5):
        answer = (
            await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
        ).json()
        (row,) = (await get_page(service, limit=1))["items"]
        assert row == answer | {"sources": omit_texts(answer["sources"])}


def omit_texts(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources as in lists."""
    return [
        {name: value for name, value in source.items() if name not in {"title", "text"}}
        for source in sources
    ]


async def test_fields_select_what_a_list_contains(serve: Serve) -> None:
    """`fields` selects fields in lists and exports; selected sources are complete."""
    service = await serve(seeded=True)
    question = {"prompt": "返品は何日以内にできますか？"}
    answer = (await service.client.post("/ai/test", json=question)).json()
    fields = {"fields": "sources,id"}
    selected = {"sources": answer["sources"], "id": answer["id"]}

    listed = await get_page(service, **fields)
    ndjson = await service.client.get(
        "/ai/logs", params=fields, headers={"Accept": "application/x-ndjson"}
    )
    text = await service.client.get(
        "/ai/logs", params={"fields": "status,prompt"}, headers={"Accept": "text/csv"}
    )

    assert answer["sources"]
    assert listed["items"] == [selected]
    assert ndjson.json() == selected
    assert list(csv.reader(io.StringIO(text.text))) == [
        ["status", "prompt"],
        ["completed", question["prompt"]],
    ]


@shared_loop
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"status": "error"}, [20, 15, 10, 5, 0]),
        ({"status": ["error", "completed"], "user_id": ["a", "nobody"]}, range(24, -1, -2)),
        ({"user_id": ["a", "b"], "limit": 3}, [24, 23, 22]),
        ({"q": "prompt 2"}, [24, 23, 22, 21, 20, 12, 2]),
        ({"q": "PROMPT absent"}, []),
        ({"since": "-1h"}, []),
        ({"until": "-90m", "limit": 1}, [24]),
        ({"since": "-9999d", "order": "-total_tokens", "limit": 2}, [24, 23]),
        ({"min_response_time_ms": 10_000}, []),
    ],
)
async def test_filters_of_admins(
    shared_log: Service, params: dict[str, Any], expected: Sequence[int]
) -> None:
    """Filters have several values; `error` is every failure; times may be relative to now."""
    assert list_numbers(await get_page(shared_log, **params)) == list(expected)


@shared_loop
@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"fields": "id,text"}, "'text' is not one of"),
        ({"fields": ""}, "fields"),
        ({"q": "a b c d e f g h i"}, "at most 8 words"),
        ({"order": "-response_time_ms"}, "since"),
        ({"order": "response_time_ms", "since": "-1h"}, "order"),
        ({"order": "-response_time_ms", "since": "-1h", "cursor": "0" * 36}, "order"),
        ({"since": "-1y"}, "since"),
        ({"since": "-24"}, "since"),
        ({"user_id": ["u"] * 21}, "user_id"),
        ({"min_response_time_ms": -1}, "min_response_time_ms"),
    ],
)
async def test_refused_parameters_are_named(
    shared_log: Service, params: dict[str, Any], named: str
) -> None:
    """A value that has no meaning is refused with the name of its parameter."""
    response = await shared_log.client.get("/ai/logs", params=params)

    assert named in is_problem(response, 422, "invalid_request")["detail"]


@shared_loop
@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-ndjson"])
async def test_lists_and_exports_are_compressed_on_request(
    shared_log: Service, accept: str
) -> None:
    """With `Accept-Encoding: gzip` a list and an export are the same, and much smaller."""
    responses = [
        await shared_log.client.get(
            "/ai/logs", headers={"Accept": accept, "Accept-Encoding": encoding}
        )
        for encoding in ("identity", "gzip, br", "gzip;q=0")
    ]

    assert [response.headers.get("Content-Encoding") for response in responses] == [
        None,
        "gzip",
        None,
    ]
    assert len({response.text for response in responses}) == 1
    assert responses[1].num_bytes_downloaded < responses[0].num_bytes_downloaded / 3
    assert all("Accept-Encoding" in response.headers["Vary"] for response in responses)


@shared_loop
async def test_compressed_list_has_its_own_entity_tag(shared_log: Service) -> None:
    """A tag belongs to one encoding, and both are answered with 304."""
    for encoding in ("gzip", "identity"):
        headers = {"Accept-Encoding": encoding}
        first = await shared_log.client.get("/ai/logs", headers=headers)
        headers |= {"If-None-Match": first.headers["ETag"]}
        again = await shared_log.client.get("/ai/logs", headers=headers)
        headers |= {"Accept-Encoding": "gzip" if encoding == "identity" else "identity"}
        other = await shared_log.client.get("/ai/logs", headers=headers)

        assert (again.status_code, other.status_code) == (304, 200)


@shared_loop
@pytest.mark.parametrize("which", [{}, *COMBINED, {"since": START}], ids="+".join)
async def test_tails_follow_the_order_of_commit(shared_log: Service, which: dict[str, Any]) -> None:
    """A tail uses an index on `seq`: it neither sorts nor reads earlier rows."""
    database = shared_log.services.database
    first = (await get_page(shared_log, limit=1))["items"][0]["id"]
    query_plans = await explain_queries(
        database,
        lambda session: read_tail(session, LogFilter(**which), limit=50, after=first),
    )

    expected = (
        "ix_request_logs_user_id_seq (user_id=? AND seq>?"
        if "user_id" in which
        else "INTEGER PRIMARY KEY (rowid>?"
    )
    assert all(expected in plan and "; " not in plan for plan in query_plans[1:]), query_plans


def log_filter(params: dict[str, Any]) -> LogFilter:
    """A filter from query parameters."""
    values = {name: value if name == "since" else (value,) for name, value in params.items()}
    return msgspec.convert(values, LogFilter)


def get_number(item: LoggedAnswer) -> int:
    """The number in the prompt of a row."""
    return int(str(item.prompt).split()[1])


@shared_loop
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
async def test_page_ends_early_instead_of_scanning_everything(
    shared_log: Service, which: dict[str, Any], expected: list[int]
) -> None:
    """With several filters a page may be short and have a cursor; every row is listed once."""
    database, filters = shared_log.services.database, log_filter(which)
    listed: list[int] = []
    pages, cursor = 0, None
    while True:
        async with database.read_session() as session:
            page = await read_page(session, filters, limit=50, cursor=cursor, scan_max=2)
        listed, pages = listed + [get_number(item) for item in page.items], pages + 1
        if (cursor := page.next_cursor) is None:
            break
    exported = [
        item async for items in export_pages(database, filters, scan_max=2) for item in items
    ]

    assert listed == expected
    assert pages > 1
    assert [get_number(item) for item in exported] == expected


@shared_loop
@pytest.mark.parametrize(
    "which",
    [{"model": "m1"}, {"user_id": "b", "model": "m1"}, {"status": "timeout"}, {"model": "none"}],
)
async def test_tail_continues_where_it_stopped_scanning(
    shared_log: Service, which: dict[str, Any]
) -> None:
    """A filtered tail scans a bounded number of rows per page and continues where it stopped."""
    everything = await get_page(shared_log, limit=200)
    ids = {item["id"]: item for item in everything["items"]}
    listed: list[int] = []
    after = next(
        item["id"] for item in everything["items"] if item["prompt"] == "prompt 1"
    )  # the first that was committed
    for _ in range(10):
        async with shared_log.services.database.read_session() as session:
            page = await read_tail(session, log_filter(which), limit=2, after=after, scan_max=3)
        assert page.next_cursor is not None
        listed, after = listed + [get_number(item) for item in page.items], page.next_cursor
        assert which.get("user_id") is None or ids[after]["user_id"] == which["user_id"]
    committed = [*range(3, 25, 2), *range(0, 25, 2)]
    fits = [
        n
        for n in committed
        if all(
            value
            == {
                "model": f"m{n % 3}",
                "user_id": "ab"[n % 2],
                "status": "completed" if n % 5 else "timeout",
            }[name]
            for name, value in which.items()
        )
    ]

    assert listed == fits


async def test_readers_of_the_log_do_not_wait_for_a_stuck_database(serve: Serve) -> None:
    """While the writer waits for a lock, the log is served without late rows."""
    service = await serve(seeded=True)
    async with service.services.database.transaction():
        await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
        async with asyncio.timeout(3):
            assert (await get_page(service))["items"] == []
    assert len(await service.rows()) == 1


IMPOSSIBLE_TIMES = [
    "0001-01-01",
    "0001-01-01T00:00:00+14:00",
    "1969-12-31T23:59:59.999999Z",
    "1969-12-31T23:59:59",
    "1970-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T23:59:59.999999-00:01",
    "0",
    "-1",
    "253402300800",
    "99999999999999999999",
    "1e400",
    "nan",
    "",
]


@shared_loop
@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("moment", IMPOSSIBLE_TIMES)
async def test_times_are_between_1970_and_9999(shared_log: Service, name: str, moment: str) -> None:
    """A time that is not in RFC 3339, or outside of 1970 to 9999 in UTC, is refused."""
    response = await shared_log.client.get("/ai/logs", params={name: moment})

    assert name in is_problem(response, 422, "invalid_request")["detail"]


@shared_loop
@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("1970-01-01T00:00:00Z", 25),
        ("1969-12-31T23:59:59-00:01", 25),
        ("2026-03-01T00:20:00", 5),
        ("2026-03-01T09:20:00+09:00", 5),
        ("2026-03-01T00:19:59.999999999Z", 5),
        ("2026-03-02", 0),
        ("9999-12-31T23:59:59.999999Z", 0),
        ("9999-12-31T23:59:59+14:00", 0),
    ],
)
async def test_times_with_and_without_offset_select_rows(
    shared_log: Service, moment: str, count: int
) -> None:
    """Times may have an offset and fractions of seconds; without an offset they are in UTC."""
    assert len((await get_page(shared_log, since=moment))["items"]) == count
    assert len((await get_page(shared_log, until=moment))["items"]) == 25 - count


@pytest.mark.parametrize("name", ["status", "endpoint"])
@shared_loop
async def test_unknown_value_of_a_filter_lists_the_valid_ones(
    shared_log: Service, name: str
) -> None:
    """A value that no row can have is refused, with those that rows can have."""
    response = await shared_log.client.get("/ai/logs", params={name: "failed"})

    valid = {"status": "timeout", "endpoint": "/ai/stream"}
    assert f"'{valid[name]}'" in is_problem(response, 422, "invalid_request")["detail"]


async def test_filter_by_another_user_matches_nothing(serve: Serve) -> None:
    """A user who filters by another user gets no rows, neither the other's nor their own."""
    service = await serve(auth="keys", secret=SECRET)
    await fill(service)
    async with client(service, await make_key(service, "a")) as alice:
        own = (await alice.get("/ai/logs", params={"user_id": "a"})).json()["items"]
        foreign = (await alice.get("/ai/logs", params={"user_id": "b"})).json()["items"]

    assert ({item["user_id"] for item in own}, foreign) == ({"a"}, [])


async def test_attempts_are_in_lists_and_exports(filled: Service) -> None:
    """Lists, selected fields and both exports have the attempts of answers with several."""
    intent = build_intent(user_id="local")
    outcome = build_outcome_of_attempts(build_failed_attempt(), build_attempt(), intent=intent)
    await write(filled.services.database, [outcome, build_outcome()])
    items = (await filled.client.get("/ai/logs", params={"limit": 200})).json()["items"]
    (attempts,) = [item["attempt_list"] for item in items if "attempt_list" in item]
    selected = await filled.client.get("/ai/logs", params={"fields": "id,attempt_list"})
    texts = [
        (await filled.client.get("/ai/logs", headers={"Accept": kind})).text
        for kind in ("application/x-ndjson", "text/csv")
    ]

    assert [attempt["error_code"] for attempt in attempts] == ["provider_busy", None]
    assert attempts[1]["estimated_cost"] == "0.0000015"
    lists = {item["id"]: item["attempt_list"] for item in selected.json()["items"]}
    assert lists[intent.id] == attempts
    assert set(map(str, lists.values())) == {"None", str(attempts)}
    assert all('"provider_busy"' in text.replace('""', '"') for text in texts)
