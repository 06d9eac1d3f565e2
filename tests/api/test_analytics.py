"""GET /ai/analytics: sums by group and bucket, whose they are, and exports."""

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.core.pricing import Usage
from service.core.records import Status, UsageSource
from tests.access import SECRET, client, make_key
from tests.conftest import Serve, Service, shared_fixture, shared_loop
from tests.problems import is_problem
from tests.records import build_intent, build_outcome
from tests.rows import write
from tests.waiting import wait_until

START = datetime(2026, 3, 1, tzinfo=UTC)


async def fill(service: Service) -> Service:
    """Twelve answers, two hours apart, of users a and b, the last of them of unknown usage."""
    rows = [
        build_outcome(
            build_intent(at=START + timedelta(hours=2 * n), user_id="ab"[n % 2], model="m"),
            status=Status.COMPLETED if n % 4 else Status.PROVIDER_ERROR,
            usage=Usage(prompt_tokens=n, completion_tokens=1),
            cost_nano_usd=1000 * n,
            response_time_ms=20 + n // 3,
        )
        for n in range(11)
    ]
    unknown = build_outcome(
        build_intent(at=START + timedelta(hours=22), user_id="b", model="m"),
        status=Status.TIMEOUT,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        cost_nano_usd=None,
        response_time_ms=25,
    )
    await write(service.services.database, [*rows, unknown])
    return service


@shared_fixture
async def shared_log(serve_shared: Serve) -> Service:
    """A service with these rows."""
    return await fill(await serve_shared())


SINCE = {"since": "2026-03-01", "until": "2026-03-02"}


async def get_page(service: Service, **params: Any) -> dict[str, Any]:
    """One page."""
    response = await service.client.get("/ai/analytics", params=params)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@shared_loop
async def test_sums_have_known_and_unknown_costs(shared_log: Service) -> None:
    """Unknown and unpriced answers are counted beside the known cost."""
    (bucket,) = (await get_page(shared_log, **SINCE))["items"]

    assert bucket["start_time"] == "2026-03-01T00:00:00Z"
    assert bucket["results"] == [
        {
            "answers": 12,
            "errors": 4,
            "total_tokens": 66,
            "cost": "0.000055",
            "unpriced_answers": 0,
            "unknown_answers": 1,
            "response_time_ms": {"p50": 21.0, "p95": 25.0, "p99": 25.0},
        }
    ]


@shared_loop
async def test_groups_and_buckets(shared_log: Service) -> None:
    """Buckets are days of the time zone, as are times without an offset; groups are ordered."""
    page = await get_page(
        shared_log,
        since="2026-03-01",
        until="2026-03-03",
        timezone="Asia/Tokyo",
        bucket="day",
        group_by="user_id",
        metrics=["answers"],
        order="-answers",
    )

    assert page["timezone"] == "Asia/Tokyo"
    assert [(bucket["start_time"], bucket["results"]) for bucket in page["items"]] == [
        (
            "2026-03-01T00:00:00+09:00",
            [{"user_id": "a", "answers": 4}, {"user_id": "b", "answers": 4}],
        ),
        (
            "2026-03-02T00:00:00+09:00",
            [{"user_id": "a", "answers": 2}, {"user_id": "b", "answers": 2}],
        ),
    ]


@shared_loop
async def test_pages_continue_within_a_bucket(shared_log: Service) -> None:
    """Following next_cursor lists every result once."""
    listed: list[tuple[str, str]] = []
    cursor: int | None = 0
    while cursor is not None:
        page = await get_page(
            shared_log, **SINCE, bucket="hour", group_by="user_id", limit=5, cursor=cursor
        )
        listed += [
            (bucket["start_time"], result["user_id"])
            for bucket in page["items"]
            for result in bucket["results"]
        ]
        cursor = page["next_cursor"]

    assert len(listed) == len(set(listed)) == 12


@shared_loop
@pytest.mark.parametrize(
    ("params", "answers"),
    [
        ({"user_id": ["a", "b"], "status": "error"}, 4),
        ({"user_id": "b", "model": "m"}, 6),
        ({"endpoint": "/ai/stream"}, 0),
        ({"key_id": "k"}, 0),
    ],
)
async def test_filters(shared_log: Service, params: dict[str, Any], answers: int) -> None:
    """Filters are those of the log."""
    items = (await get_page(shared_log, **SINCE, metrics="answers", **params))["items"]

    assert items == [] if not answers else items[0]["results"] == [{"answers": answers}]


@shared_loop
@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"metrics": "profit"}, "metrics"),
        ({"group_by": "prompt"}, "group_by"),
        ({"since": "1969-01-01"}, "since"),
        ({"order": "cost"}, "order"),
        ({"limit": 1001}, "limit"),
    ],
)
async def test_refused_parameters_are_named(
    shared_log: Service, params: dict[str, Any], named: str
) -> None:
    """A value without a meaning is refused with the name of its parameter."""
    response = await shared_log.client.get("/ai/analytics", params=params)

    assert named in is_problem(response, 422, "invalid_request")["detail"]


@shared_loop
@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"timezone": "Mars/Olympus"}, "time zone"),
        ({"timezone": "../etc/passwd"}, "time zone"),
        ({"since": "2020-01-01", "bucket": "hour"}, "1000 buckets"),
    ],
)
async def test_intervals_that_cannot_be_evaluated(
    shared_log: Service, params: dict[str, Any], named: str
) -> None:
    """An unknown time zone, or too many buckets, are problems of their own."""
    response = await shared_log.client.get("/ai/analytics", params=params)

    assert named in is_problem(response, 400, "invalid_interval")["detail"]


@shared_loop
async def test_an_interval_without_time_is_empty(shared_log: Service) -> None:
    """An interval that ends before it begins has no results."""
    page = await get_page(shared_log, since="2026-03-02", until="2026-03-01", bucket="hour")

    assert (page["items"], page["next_cursor"]) == ([], None)


@shared_loop
async def test_csv_has_all_results(shared_log: Service) -> None:
    """`Accept: text/csv` has a column for each metric, dimension and percentile."""
    response = await shared_log.client.get(
        "/ai/analytics", params=SINCE | {"group_by": "user_id"}, headers={"Accept": "text/csv"}
    )
    rows = list(csv.DictReader(io.StringIO(response.text)))

    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert [(row["user_id"], row["answers"], row["cost"]) for row in rows] == [
        ("a", "6", "0.00003"),
        ("b", "6", "0.000025"),
    ]
    assert rows[0]["response_time_ms_p95"] == "23.0"


@shared_loop
async def test_focus_export_has_days(shared_log: Service) -> None:
    """The FOCUS export has a row for each day, user and status of the cost."""
    response = await shared_log.client.get("/ai/analytics/focus", params=SINCE)
    rows = list(csv.DictReader(io.StringIO(response.text)))

    assert [(row["SubAccountId"], row["BilledCost"], row["x_CostStatus"]) for row in rows] == [
        ("a", "0.00003", "known"),
        ("b", "0.000025", "known"),
        ("b", "", "unknown"),
    ]


async def test_users_see_their_own_sums(serve: Serve) -> None:
    """A user gets the sums of their own answers, also when filtering by another user."""
    service = await serve(auth="keys", secret=SECRET)
    await fill(service)
    async with client(service, await make_key(service, "a")) as alice:
        params = SINCE | {"group_by": "user_id", "metrics": "answers"}
        own = (await alice.get("/ai/analytics", params=params)).json()["items"]
        foreign = (await alice.get("/ai/analytics", params=params | {"user_id": "b"})).json()
        focus = (await alice.get("/ai/analytics/focus", params=SINCE | {"user_id": "b"})).text

    assert [bucket["results"] for bucket in own] == [[{"user_id": "a", "answers": 6}]]
    assert foreign["items"] == []
    assert focus.count("\n") == 1


async def test_answers_that_ended_before_the_request_are_included(serve: Serve) -> None:
    """An answer is in the sums once it was received."""
    service = await serve(seeded=True)
    await service.client.post("/ai/test", json={"prompt": "返品は何日以内にできますか？"})
    (bucket,) = (await get_page(service, metrics="answers"))["items"]

    assert bucket["results"] == [{"answers": 1}]


async def test_requests_of_a_user_run_in_turn(serve: Serve) -> None:
    """A page can request its charts together: those after the first wait for it."""
    service = await serve()
    turns = service.services.analytics
    async with asyncio.TaskGroup() as group, turns.turn("local"):
        requests = [group.create_task(service.client.get("/ai/analytics")) for _ in range(7)]
        await wait_until(lambda: turns.waiting == 7)

    assert [request.result().status_code for request in requests] == [200] * 7


async def test_a_full_queue_is_refused(serve: Serve) -> None:
    """The ninth request of a user is refused while eight run or wait."""
    service = await serve()
    turns = service.services.analytics
    async with asyncio.TaskGroup() as group, turns.turn("local"):
        for _ in range(7):
            group.create_task(service.client.get("/ai/analytics"))
        await wait_until(lambda: turns.waiting == 7)
        refused = await service.client.get("/ai/analytics")

    is_problem(refused, 503, "overloaded")
    assert "Retry-After" in refused.headers


@shared_loop
async def test_check_returns_both_sums(shared_log: Service) -> None:
    """The sums over the rows and the stored ones are equal, with the unknown amount beside."""
    response = await shared_log.client.get("/ai/analytics/check", params=SINCE)
    body = response.json()

    assert response.status_code == 200
    assert body["agrees"] is True
    assert body["rows"] == body["sums"]
    assert body["rows"]["cost"] == "0.000055"
    assert (body["rows"]["answers"], body["rows"]["unknown_answers"]) == (12, 1)
    assert body["since"] == "2026-03-01T00:00:00Z"
