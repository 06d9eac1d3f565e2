"""One account in every view: rows, attempts, rollups, analytics, exports, pages and metrics.

Thousands of answers of several users, keys and models end in every possible way, also by `kill -9`.
Then all views are compared with sums that this file computes from the exported rows.
"""

import asyncio
import csv
import io
import json
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.access import bearer
from tests.conftest import http_client
from tests.fakes.provider import ProviderFake
from tests.faults.oracle import check, check_attempts
from tests.faults.scene import wait_drained
from tests.faults.traffic import UNPRICED, Traffic, build_catalog
from tests.process import ServiceProcess, kotae, serving

SECRET = "a" * 32
USERS = ["ann", "bob", "eve", "joe"]
DIMENSIONS = ("user_id", "key_id", "model", "provider", "endpoint", "status", "usage_source")
TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
FAILURES = {"provider_error", "timeout", "interrupted"}
METRICS = ["answers", "errors", "attempts", *TOKENS, "total_tokens", "cost"]
Row = dict[str, Any]
Sums = Counter[str]


def to_nano_usd(cost: str | None) -> int:
    """The nano-dollars of a decimal string, exactly; 0 without a known cost."""
    nano_usd = Decimal(cost or 0) * 10**9
    assert nano_usd == int(nano_usd)
    return int(nano_usd)


def list_parts(row: Row) -> Iterable[tuple[Row, Sums]]:
    """What a row adds: the answer for the model that was query for, its calls for what was called.

    A part of an account whose sum is not known is not known either.
    """
    is_unknown, is_unpriced = row["usage_source"] == "unknown", row["estimated_cost"] is None
    answer = Sums(
        answers=1,
        errors=row["status"] in FAILURES,
        unknown_answers=is_unknown,
        unpriced_answers=is_unpriced and not is_unknown,
    )
    yield row, answer
    attempts = row.get("attempt_list") or [
        {**row, "model": row.get("provider_model") or row["model"]}
    ]
    for attempt in attempts:
        used = Sums({name: attempt[name] or 0 for name in TOKENS})
        if row["prompt_tokens"] is None:
            used = Sums()
        used["cost"] = 0 if is_unpriced else to_nano_usd(attempt["estimated_cost"])
        used["attempts"] = 1 if row.get("attempt_list") else row["attempts"]
        used["total_tokens"] = used["prompt_tokens"] + used["completion_tokens"]
        yield {**row, "model": attempt["model"], "provider": attempt["provider"]}, used


def sum_rows(rows: list[Row], group_by: tuple[str, ...]) -> dict[tuple[Any, ...], Sums]:
    """The sums by group, without groups that have nothing."""
    sums: defaultdict[tuple[Any, ...], Sums] = defaultdict(Sums)
    for row in rows:
        for values, counts in list_parts(row):
            sums[tuple(values[name] or None for name in group_by)].update(counts)
    return {group: +counts for group, counts in sums.items() if +counts}


def read_results(results: Iterable[Row], group_by: tuple[str, ...]) -> dict[tuple[Any, ...], Sums]:
    """The results of analytics in the form of `sum_rows`."""
    read = {}
    for result in results:
        counts = Sums({name: value for name, value in result.items() if isinstance(value, int)})
        counts["cost"] = to_nano_usd(result["cost"])
        read[tuple(result[name] or None for name in group_by)] = +counts
    return read


async def list_results(admin: Any, **params: Any) -> list[Row]:
    """All results of `GET /ai/analytics`."""
    results: list[Row] = []
    cursor: int | None = 0
    while cursor is not None:
        response = await admin.get(
            "/ai/analytics", params={"limit": 1000, **params, "cursor": cursor}
        )
        page = response.json()
        results += [result for item in page["items"] for result in item["results"]]
        cursor = page["next_cursor"]
    return results


async def check_analytics(admin: Any, rows: list[Row]) -> None:
    """Every grouping, and all dimensions together, have the sums of the rows."""
    for group_by in ((), *((name,) for name in DIMENSIONS), DIMENSIONS):
        results = await list_results(admin, group_by=list(group_by), metrics=METRICS)
        assert read_results(results, group_by) == sum_rows(rows, group_by), group_by


async def check_command(service: ServiceProcess, data_dir: Path, rows: list[Row]) -> None:
    """`kotae usage --json` has the sums of the rows."""
    for name in ("user_id", "key_id", "model", "status"):
        status, output, _ = await kotae(
            *("usage", "--json", "--url", service.url, "--by", name),
            data_dir=data_dir, KOTAE_SECRET=SECRET,
        )  # fmt: skip
        assert status == 0
        printed = read_results(map(json.loads, output.splitlines()), (name,))
        expected = sum_rows(rows, (name,))
        shown = ("answers", "errors", "total_tokens", "cost", "unknown_answers", "unpriced_answers")
        assert printed == {
            group: +Sums({key: counts[key] for key in shown}) for group, counts in expected.items()
            if any(counts[key] for key in shown) or counts["attempts"]
        }  # fmt: skip


async def check_focus(admin: Any, rows: list[Row]) -> None:
    """The FOCUS export has every cost and every answer once."""
    response = await admin.get("/ai/analytics/focus")
    exported: defaultdict[tuple[str, str], Sums] = defaultdict(Sums)
    for line in csv.DictReader(io.StringIO(response.text)):
        exported[line["SubAccountId"], line["ResourceId"]].update(
            answers=int(line["x_Answers"]), cost=to_nano_usd(line["BilledCost"])
        )
    expected = sum_rows(rows, ("user_id", "model"))
    assert {group: +sums for group, sums in exported.items() if +sums} == {
        group: +Sums(answers=counts["answers"], cost=counts["cost"])
        for group, counts in expected.items()
        if counts["answers"] or counts["cost"]
    }


async def check_overview(admin: Any, rows: list[Row]) -> None:
    """What the overview page requests: its tiles, its charts by hour, and its own comparison."""
    (total,) = sum_rows(rows, ()).values()
    for params in ({}, {"bucket": "hour"}):
        results = await list_results(admin, metrics=[*METRICS, "response_time_ms"], **params)
        assert sum(to_nano_usd(result["cost"]) for result in results) == total["cost"]
        assert sum(result["answers"] for result in results) == total["answers"]
    checked = (await admin.get("/ai/analytics/check")).json()
    assert checked["agrees"] is True
    assert to_nano_usd(checked["rows"]["cost"]) == total["cost"]
    assert checked["rows"]["unknown_answers"] == total["unknown_answers"]


async def check_metrics(admin: Any, rows: list[Row]) -> None:
    """Counters have the answers that this process finished: its rows.

    They cannot promise more: they begin with the process, do not have the answers of a process that
    was killed, and the cost is a float.
    """
    (total,) = sum_rows(rows, ()).values()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families((await admin.get("/metrics")).text)
        for sample in family.samples
    }
    counted = {
        tuple(dict(labels)[name] for name in ("endpoint", "status", "usage_source")): value
        for (name, labels), value in samples.items()
        if name == "kotae_answers_total"
    }
    assert counted == Counter((row["endpoint"], row["status"], row["usage_source"]) for row in rows)
    for kind in ("prompt", "completion"):
        assert samples["kotae_tokens_total", (("kind", kind),)] == total[f"{kind}_tokens"]
    assert samples["kotae_unpriced_answers_total", ()] == total["unpriced_answers"]
    assert abs(samples["kotae_cost_usd_total", ()] * 1e9 - total["cost"]) < 1


@pytest.fixture
async def second() -> AsyncIterator[ProviderFake]:
    """The second provider."""
    async with ProviderFake() as fake:
        yield fake


async def create_keys(service: ServiceProcess) -> list[str]:
    """Two keys of each user."""
    keys = []
    for user in USERS * 2:
        response = await service.client.post(
            "/ai/keys", json={"user_id": user}, headers=bearer(SECRET)
        )
        keys.append(response.json()["key"])
    return keys


async def end_process(service: ServiceProcess, callers: "asyncio.Task[None]", number: int) -> None:
    """Kill the process during answers, every third time by SIGTERM."""
    service.signal(signal.SIGTERM if number % 3 == 2 else signal.SIGKILL)
    await asyncio.gather(service.wait(30), callers)


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        pytest.param(1_000, 3, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(20_000, 12, marks=[pytest.mark.nightly, pytest.mark.timeout(3000)]),
    ],
)
async def test_every_view_has_the_same_account(
    tmp_path: Path, fake: ProviderFake, second: ProviderFake, answers: int, ends: int
) -> None:
    """Rows, attempts, rollups, analytics, exports and metrics agree to the nano-dollar."""
    providers = tmp_path / "providers.json"
    providers.write_text(json.dumps(build_catalog(fake, second)))
    settings = {
        "KOTAE_PROVIDERS": providers,
        "KOTAE_AUTH": "keys",
        "KOTAE_SECRET": SECRET,
        "KOTAE_LOG_LEVEL": "error",
        "KOTAE_RESUME_SECONDS": 0,
        "KOTAE_SHUTDOWN_GRACE_SECONDS": 0.2,
    }
    traffic = Traffic([], fake)
    part = answers // (ends + 1)
    for number in range(ends):
        async with serving(tmp_path, **settings) as service:
            traffic.keys = traffic.keys or await create_keys(service)
            before = traffic.sent
            callers = asyncio.create_task(traffic.run(service.url, f"process {number}", answers))
            while traffic.sent < before + part:
                await asyncio.sleep(0.001)
            await end_process(service, callers, number)
    async with serving(tmp_path, **settings) as service:
        await wait_drained_as_admin(service)
        await traffic.run(service.url, "last process", answers - traffic.sent)
        await wait_drained_as_admin(service)
        async with http_client(service.url, headers=bearer(SECRET), timeout=60) as admin:
            export = await admin.get("/ai/logs", headers={"Accept": "application/x-ndjson"})
            rows: list[Row] = [json.loads(line) for line in export.text.splitlines()]
            await check_metrics(admin, [row for row in rows if row["prompt"].startswith("last")])
            await check_analytics(admin, rows)
            await check_focus(admin, rows)
            await check_overview(admin, rows)
            await check_command(service, tmp_path, rows)
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
    for provider in (fake, second):
        await provider.wait_idle()

    check(tmp_path, [*fake.calls, *second.calls], traffic.acknowledged)
    assert check_attempts(rows, {"first": fake.calls, "second": second.calls}) > 0
    assert {row["status"] for row in rows} == {
        *("completed", "no_context", "stopped", "client_gone"), *FAILURES,
    }  # fmt: skip
    assert {row["usage_source"] for row in rows} == {"provider", "estimated", "unknown", "none"}
    assert {row["user_id"] for row in rows} == set(USERS)
    assert UNPRICED in {row["model"] for row in rows}
    status, output, _ = await kotae("audit", data_dir=tmp_path, **settings)
    assert status == 0, output


async def wait_drained_as_admin(service: ServiceProcess) -> None:
    """Wait until recovery is done and every record is in the database."""
    service.client.headers.update(bearer(SECRET))
    await wait_drained(service)
