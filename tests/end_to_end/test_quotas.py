"""Quotas over HTTP: parallel requests, refusals, a killed process."""

import asyncio
import re
import signal
from collections.abc import Callable
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.engine import Database
from service.core.database.tables import quota_totals, request_logs
from service.core.limits import ServiceLimits
from service.core.ports import QuotaLimits
from service.core.provider_file import ModelPrice
from service.core.quota.windows import LIMITS
from service.core.records import compute_row_charge
from tests.access import bearer, client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.problems import is_problem
from tests.process import migrate, serving
from tests.sse import collect, events

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}


async def create_limited_key(service: Service, name: str = "alice", **limits: int) -> str:
    """Create a key of a user with these limits."""
    key = await make_key(service, name)
    await store.put_user(service.services.database, BOOTSTRAP, name, limits=QuotaLimits(**limits))
    return str(key.key)


async def create_key_for(service: Service, count: int) -> tuple[str, int]:
    """Create a key with tokens for this number of questions; also return the hold of one."""
    key = await make_key(service, "alice")
    async with client(service, key) as caller:
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200
    await service.wait_idle()
    async with service.services.database.read_session() as session:
        query = sa.select(request_logs.c.held_tokens)
        held = int((await session.execute(query)).scalar_one())
    used = service.services.quota.get_usage("user:alice")["tokens_per_day"][0]
    await store.put_user(
        service.services.database,
        BOOTSTRAP,
        "alice",
        limits=QuotaLimits(tokens_per_day=used + held * count),
    )
    service.services.authenticator.clear_cache()
    return str(key.key), held


async def send_plain(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Send one prompt without streaming."""
    response = await caller.post("/ai/test", json=ASK)
    if response.status_code == 429:
        refused()
    return response.status_code


async def read_stream(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Open a stream and read it to its end."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 429:
            refused()
            return 429
        assert (await collect(response))[-1].name == "done"
        return response.status_code


async def cut_stream(caller: httpx2.AsyncClient, refused: Callable[[], None]) -> int:
    """Open a stream and disconnect after its first event."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 429:
            refused()
            return 429
        async with aclosing(events(response)) as stream:
            await anext(stream)
        return response.status_code


@pytest.mark.parametrize("way", [send_plain, read_stream, cut_stream])
async def test_parallel_requests_do_not_exceed_the_quota(
    serve: Serve, fake: ProviderFake, way: Any
) -> None:
    """Ten reach the provider, 190 get 429; then usage equals the log, and nothing is held."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key, _ = await create_key_for(service, 10)
    held, refusals, before = asyncio.Event(), asyncio.Semaphore(0), len(fake.calls)
    fake.default = Behaviour(hold=held)
    async with client(service, key, limits=httpx2.Limits(max_connections=200)) as caller:
        tasks = [asyncio.create_task(way(caller, refusals.release)) for _ in range(200)]
        async with asyncio.timeout(30):
            for _ in range(190):
                await refusals.acquire()
        held.set()
        statuses = await asyncio.gather(*tasks)
        answer = await caller.get("/ai/logs", params={"limit": 200})
    await service.wait_idle()

    assert sorted(statuses) == [200] * 10 + [429] * 190
    assert len(fake.calls) - before <= 10
    if way is not cut_stream:
        assert len(fake.calls) - before == 10
    assert answer.status_code == 200
    async with client(service, key) as caller:
        rows = (await caller.get("/ai/logs", params={"limit": 200})).json()["items"]
    assert len(rows) == 11
    usage = service.services.quota.get_usage("user:alice")
    assert usage["tokens_per_day"] == (await read_charged(service, "user:alice"), 0)
    assert {name: held for name, (_, held) in usage.items()} == dict.fromkeys(
        (*(name for name, *_ in LIMITS), "concurrent"), 0
    )
    assert service.services.quota.statistics().holds == 0
    if way is not cut_stream:
        assert usage["tokens_per_day"][0] == sum(row["total_tokens"] for row in rows)


async def read_charged(service: Service, subject: str) -> int:
    """Read today's usage from the database."""
    totals = quota_totals.c
    async with service.services.database.read_session() as session:
        return int(
            (
                await session.execute(
                    sa.select(sa.func.sum(totals.tokens)).where(totals.subject == subject)
                )
            ).scalar_one()
        )


@pytest.mark.slow
async def test_a_kill_leaves_no_hold(tmp_path: Path, fake: ProviderFake) -> None:
    """Of 200 at once, ten are open at a kill; the next process charges only those."""
    await migrate(tmp_path)
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    created = await store.create_key(database, BOOTSTRAP, store.NewKey(user_id="alice"), keys_max=9)
    await store.put_user(
        database, BOOTSTRAP, "alice", limits=QuotaLimits(concurrent=10, tokens_per_day=100_000)
    )
    fake.default = Behaviour(hang_after=2)
    options = {"OPENAI_BASE_URL": fake.base_url, "KOTAE_MODEL": "m", "KOTAE_AUTH": "keys"}
    async with serving(tmp_path, **options) as first:
        first.client.headers.update(bearer(created))
        tasks = [asyncio.create_task(first.client.post("/ai/test", json=ASK)) for _ in range(200)]
        await fake.wait_calls(10)
        async with asyncio.timeout(10):
            while sum(result.done() for result in tasks) < 190:
                await asyncio.sleep(0.01)
        first.signal(signal.SIGKILL)
        await first.wait()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert (
        sum(isinstance(result, httpx2.Response) and result.status_code == 429 for result in ended)
        == 190
    )
    fake.default = Behaviour()
    async with serving(tmp_path, **options) as second:
        second.client.headers.update(bearer(created))
        answer = await second.client.post("/ai/test", json=ASK)
        match = re.search(r'"user-tokens-per-day";r=(\d+)', answer.headers["ratelimit"])
        assert match
        left = int(match.group(1))
        assert '"user-concurrent";r=10' in answer.headers["ratelimit"]
        second.signal(signal.SIGTERM)
        await second.wait()
    async with database.read_session() as session:
        rows = (await session.execute(sa.select(request_logs))).mappings().all()
    await database.close()

    assert len(rows) == 11
    assert {row["status"] for row in rows} == {"interrupted", "completed"}
    assert 100_000 - left == sum(compute_row_charge(row)[0] for row in rows)
    assert all(compute_row_charge(row)[0] >= 100 for row in rows if row["status"] == "interrupted")


async def test_a_quota_refusal_is_complete(serve: Serve, fake: ProviderFake) -> None:
    """429 names its limit and the time, with headers; nothing reaches the provider."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    async with client(
        service, await create_limited_key(service, requests_per_minute=2, tokens_per_day=50_000)
    ) as alice:
        first = await alice.post("/ai/test", json=ASK)
        async with alice.stream(
            "GET", "/ai/stream", params={"prompt": "Why?", "grounded": False}
        ) as second:
            await second.aread()
        third = await alice.post("/ai/stream", json=ASK)
        beyond = await alice.post(
            "/ai/test", json=ASK | {"prompt": "é" * 15_000, "max_tokens": 8192, "model": "m"}
        )

    assert '"user-requests-per-minute";r=1;t=' in first.headers["ratelimit"]
    assert '"user-requests-per-minute";r=0;t=' in second.headers["ratelimit"]
    problem = is_problem(third, 429, "quota_exceeded")
    assert problem["limit"] == "requests_per_minute"
    assert 1 <= problem["retry_after"] == int(third.headers["retry-after"]) <= 60
    assert third.headers["ratelimit-policy"].startswith('"user-requests-per-minute";q=2;w=60')
    assert is_problem(beyond, 429, "quota_exceeded")["limit"] == "requests_per_minute"
    assert len(fake.calls) == 2


async def test_a_request_above_the_limit_is_a_400(serve: Serve, fake: ProviderFake) -> None:
    """A request above the limit is a 400 with a separate code, without Retry-After."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", seeded=True)
    async with client(service, await create_limited_key(service, tokens_per_day=1000)) as alice:
        for body in (
            ASK | {"max_tokens": 2000},
            {"prompt": "返品は何日以内にできますか？", "max_tokens": 100},
        ):
            response = await alice.post("/ai/test", json=body)
            is_problem(response, 400, "beyond_quota")
            assert "retry-after" not in response.headers
    assert service.services.quota.statistics().holds == 0
    assert fake.calls == []


async def test_money_is_held_by_price(serve: Serve, fake: ProviderFake) -> None:
    """Cost is held by the price of the model; an unpriced model is refused with a cost limit."""
    prices = {"m": ModelPrice(input=Decimal(1), output=Decimal(2))}
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", prices=prices)
    async with client(
        service, await create_limited_key(service, cost_nano_usd_per_day=10_000_000)
    ) as alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()
        is_problem(
            await alice.post("/ai/test", json=ASK | {"model": "nobody-knows"}),
            400,
            "unpriced_model",
        )
    used = service.services.quota.get_usage("user:alice")["cost_nano_usd_per_day"]

    assert used == (round(float(answer["estimated_cost"]) * 1e9), 0)
    assert used[0] > 0


async def test_a_refusal_releases_the_hold(serve: Serve, fake: ProviderFake) -> None:
    """When the queue is full after the hold, nothing remains held and nothing is used."""
    service = await serve(
        auth="keys",
        openai_base_url=fake.base_url,
        model="m",
        limits=ServiceLimits(queue_records_max=1),
    )
    held = asyncio.Event()
    fake.default = Behaviour(hold=held)
    async with client(service, await create_limited_key(service, tokens_per_day=100_000)) as alice:
        first = asyncio.create_task(alice.post("/ai/test", json=ASK))
        await fake.wait_calls(1)
        is_problem(await alice.post("/ai/test", json=ASK), 503, "overloaded")
        assert service.services.quota.get_usage("user:alice")["concurrent"] == (0, 1)
        held.set()
        await first
    assert service.services.quota.get_usage("user:alice")["requests_per_minute"] == (1, 0)
    assert service.services.quota.statistics().holds == 0


async def test_a_refused_question_uses_no_tokens(serve: Serve) -> None:
    """A refusal without context counts as a request and costs nothing."""
    service = await serve(auth="keys")
    async with client(service, await create_limited_key(service, tokens_per_day=5000)) as alice:
        assert (
            await alice.post("/ai/test", json={"prompt": "Who invented the quantum computer?"})
        ).json()["status"] == "no_context"
    usage = service.services.quota.get_usage("user:alice")
    assert (usage["tokens_per_day"], usage["requests_per_minute"], usage["concurrent"]) == (
        (0, 0),
        (1, 0),
        (0, 0),
    )
