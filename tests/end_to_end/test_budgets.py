"""Budgets that refuse requests: exact in parallel, for every subject and store of quotas."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from service.core.auth import store as auth_store
from service.core.auth.principals import BOOTSTRAP, Role
from service.core.database.tables import quota_totals, request_logs
from service.core.ports import QuotaLimits
from service.core.pricing import format_usd
from service.core.provider_file import ModelPrice
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.postgres import temporary_database
from tests.problems import is_problem
from tests.redis import running_redis

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}
PRICES = {name: ModelPrice(input=Decimal(1), output=Decimal(2)) for name in ("m", "n")}


SHARED = [pytest.param(name, marks=pytest.mark.slow) for name in ("postgres", "redis")]


@pytest.fixture(params=["local", *SHARED])
async def services(
    request: pytest.FixtureRequest, serve: Serve, fake: ProviderFake, tmp_path: Path
) -> AsyncIterator[Sequence[Service]]:
    """A service, or two replicas with quotas in PostgreSQL or in Redis."""
    settings: dict[str, Any] = {
        "auth": "keys",
        "openai_base_url": fake.base_url,
        "openai_api_key": "k",
        "model": "m",
        "models": ["m", "n"],
        "prices": PRICES,
    }
    if request.param == "local":
        yield [await serve(**settings)]
        return
    async with AsyncExitStack() as stack:
        server = request.getfixturevalue("postgres")
        database = await stack.enter_async_context(temporary_database(server))
        settings |= {"database_url": database._url, "peer_address": "127.0.0.1:0"}
        if request.param == "redis":
            settings["redis_url"] = stack.enter_context(running_redis()).url
        yield [
            await serve(data_dir=tmp_path / name, journal_spool="none", **settings)
            for name in ("a", "b")
        ]


@pytest.fixture
async def service(serve: Serve, fake: ProviderFake) -> Service:
    """A service with keys and prices."""
    return await serve(
        auth="keys",
        openai_base_url=fake.base_url,
        openai_api_key="k",
        model="m",
        models=["m", "n"],
        prices=PRICES,
    )


async def create_budget(service: Service, subject: str = "all", **fields: Any) -> dict[str, Any]:
    """Create a budget that refuses requests, with a key of an admin."""
    body = {"name": "b", "subject": subject, "amount_usd": "1", "period": "day"}
    admin = await make_key(service, "root", Role.ADMIN)
    async with client(service, admin) as caller:
        response = await caller.post("/ai/budgets", json=body | {"action": "refuse"} | fields)
    assert response.status_code == 201, response.text
    budget: dict[str, Any] = response.json()
    return budget


async def change_budget(service: Service, budget: dict[str, Any], **fields: Any) -> None:
    """Change a budget, with a key of an admin."""
    admin = await make_key(service, "root", Role.ADMIN)
    async with client(service, admin) as caller:
        response = await caller.patch(f"/ai/budgets/{budget['id']}", json=fields)
    assert response.status_code == 200, response.text


async def read_charge(service: Service, budget: dict[str, Any]) -> int:
    """The nano-dollars charged to a budget, from the database."""
    query = sa.select(sa.func.sum(quota_totals.c.cost_nano_usd)).where(
        quota_totals.c.subject == f"budget:{budget['id']}"
    )
    async with service.services.database.read_session() as session:
        return int((await session.execute(query)).scalar_one() or 0)


async def read_hold(service: Service) -> int:
    """The upper bound of the cost of an answer, from its row."""
    query = sa.select(sa.func.max(request_logs.c.held_nano_usd))
    async with service.services.database.read_session() as session:
        return int((await session.execute(query)).scalar_one())


async def test_parallel_requests_do_not_exceed_a_budget(
    services: Sequence[Service], fake: ProviderFake
) -> None:
    """With room for five, five of forty requests to any replica reach the provider."""
    budget = await create_budget(services[0])
    callers = [client(service, await make_key(service, "alice")) for service in services]
    async with AsyncExitStack() as stack:
        for caller in callers:
            await stack.enter_async_context(caller)
        assert (await callers[0].post("/ai/test", json=ASK)).status_code == 200
        await services[0].wait_idle()
        used, hold = await read_charge(services[0], budget), await read_hold(services[0])
        await change_budget(services[0], budget, amount_usd=format_usd(used + 5 * hold))
        for service in services:
            await service.services.budgets.refresh()
        held, before = asyncio.Event(), len(fake.calls)
        fake.default = Behaviour(hold=held)
        tasks = [
            asyncio.create_task(callers[n % len(callers)].post("/ai/test", json=ASK))
            for n in range(40)
        ]
        async with asyncio.timeout(30):
            while sum(task.done() for task in tasks) < 35:
                await asyncio.sleep(0.01)
        held.set()
        responses = await asyncio.gather(*tasks)
        assert sorted(response.status_code for response in responses) == [200] * 5 + [429] * 35
        assert len(fake.calls) - before == 5
        for service in services:
            await service.wait_idle()
    rows = sa.select(sa.func.sum(request_logs.c.cost_nano_usd))
    async with services[0].services.database.read_session() as session:
        assert await read_charge(services[0], budget) == (await session.execute(rows)).scalar_one()


async def use_up(service: Service, caller: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    """Ask until a request is refused, and return the refusal."""
    for _ in range(20):
        response = await caller.post("/ai/test", json=ASK | body)
        if response.status_code != 200:
            return response
        await service.wait_idle()
    raise AssertionError("nothing was refused")


async def test_the_refusal_names_the_budget_and_no_amount(service: Service) -> None:
    """The error is that of a quota; the sums of others are not told."""
    await create_budget(service, name="team-total", amount_usd="0.0005")
    async with client(service, await make_key(service, "alice")) as caller:
        response = await use_up(service, caller)
        problem = is_problem(response, 429, "quota_exceeded")
        assert (problem["budget"], problem["of"]) == ("team-total", "budget")
        assert problem["limit"] == "cost_usd_per_day"
        assert "500000" not in response.text
        assert "ratelimit" not in response.headers
        body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 100}
        path = "/v1/chat/completions"
        while (response := await caller.post(path, json=body)).status_code == 200:
            await service.wait_idle()
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "insufficient_quota"
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("subject", ["user:alice", "key", "plan:team", "plan:default", "model:m"])
async def test_a_budget_refuses_its_subject_only(service: Service, subject: str) -> None:
    """Requests of other users, keys, plans and models are answered."""
    await auth_store.put_plan(service.services.database, BOOTSTRAP, "team", QuotaLimits())
    key, other = await make_key(service, "alice"), await make_key(service, "bob")
    member = "alice" if subject == "plan:team" else "bob"
    await auth_store.put_user(service.services.database, BOOTSTRAP, member, plan="team")
    service.services.authenticator.clear_cache()
    await create_budget(
        service, f"key:{key.id}" if subject == "key" else subject, amount_usd="0.0005"
    )
    async with client(service, key) as caller, client(service, other) as others:
        is_problem(await use_up(service, caller), 429, "quota_exceeded")
        asked = ASK | ({"model": "n"} if subject == "model:m" else {})
        response = await (caller if subject == "model:m" else others).post("/ai/test", json=asked)
        assert response.status_code == 200, response.text


async def test_answers_in_progress_count_when_they_end(
    service: Service, fake: ProviderFake
) -> None:
    """A budget that is created during answers is charged for them, and for earlier ones."""
    held = asyncio.Event()
    fake.next(Behaviour(), Behaviour(hold=held))
    async with client(service, await make_key(service, "alice")) as caller:
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200
        running = asyncio.create_task(caller.post("/ai/test", json=ASK))
        async with asyncio.timeout(20):
            while len(fake.calls) < 2:
                await asyncio.sleep(0.01)
        budget = await create_budget(service)
        held.set()
        assert (await running).status_code == 200
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200
    await service.wait_idle()
    name = f"budget:{budget['id']}"
    used = service.services.quota.get_usage(name)["cost_nano_usd_per_day"]
    assert used == (await read_charge(service, budget), 0)
    assert (await read_charge(service, budget)) == sum(
        int(Decimal(row["estimated_cost"]) * 10**9) for row in await list_rows(service)
    )


async def list_rows(service: Service) -> list[dict[str, Any]]:
    """All rows, read by an admin."""
    async with client(service, await make_key(service, "root", Role.ADMIN)) as caller:
        items: list[dict[str, Any]] = (await caller.get("/ai/logs")).json()["items"]
    return items


async def test_a_deleted_budget_refuses_nothing(service: Service) -> None:
    """After the deletion, and after a change to alerts, requests are answered again."""
    budget = await create_budget(service, amount_usd="0.0005")
    async with client(service, await make_key(service, "alice")) as caller:
        await use_up(service, caller)
        await change_budget(service, budget, action="alert")
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200
        await change_budget(service, budget, action="refuse")
        assert (await caller.post("/ai/test", json=ASK)).status_code == 429
        async with client(service, await make_key(service, "root", Role.ADMIN)) as admin:
            assert (await admin.delete(f"/ai/budgets/{budget['id']}")).status_code == 204
        assert (await caller.post("/ai/test", json=ASK)).status_code == 200


async def test_embedding_calls_are_refused_too(serve: Serve, fake: ProviderFake) -> None:
    """A call for vectors holds the budgets as well."""
    service = await serve(
        openai_base_url=fake.base_url,
        openai_api_key="k",
        model="m",
        prices=PRICES,
        embeddings="openai",
        embeddings_model="n",
    )
    body = {"name": "b", "subject": "all", "amount_usd": "0.000001", "period": "day"}
    response = await service.client.post("/ai/budgets", json=body | {"action": "refuse"})
    assert response.status_code == 201
    response = await service.client.post("/v1/embeddings", json={"model": "n", "input": "a" * 5000})
    assert response.status_code == 400, response.text
    assert response.json()["budget"] == "b"
