"""Prepaid answers over HTTP: parallel requests, refusals, prices, and a killed process."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from service.core.database.engine import Database
from service.core.pricing import format_usd, to_nano_usd
from service.core.provider_file import ModelPrice
from tests.access import bearer, client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.mcp_clients import HEADERS, build_call
from tests.postgres import temporary_database
from tests.problems import is_problem
from tests.process import migrate, serving
from tests.sse import collect, events
from tests.wallets import MARKUP, add_funds, get_balance, make_prepaid, read_debits

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
PRICES = {"m": ModelPrice(input=Decimal(1), output=Decimal(2))}
REQUESTS, ADMITTED = 200, 10


@pytest.fixture(params=["local", pytest.param("postgres", marks=pytest.mark.slow)])
async def services(
    request: pytest.FixtureRequest, serve: Serve, fake: ProviderFake, tmp_path: Path
) -> AsyncIterator[Sequence[Service]]:
    """A service, or two replicas."""
    settings = build_settings(fake)
    if request.param == "local":
        yield [await serve(**settings)]
        return
    async with AsyncExitStack() as stack:
        server = request.getfixturevalue("postgres")
        database = await stack.enter_async_context(temporary_database(server))
        settings |= {"database_url": database._url, "peer_address": "127.0.0.1:0"}
        yield [
            await serve(data_dir=tmp_path / name, journal_spool="none", **settings)
            for name in ("a", "b")
        ]


def build_settings(fake: ProviderFake) -> dict[str, Any]:
    """Settings with keys and prices."""
    provider = {"openai_base_url": fake.base_url, "openai_api_key": "k"}
    return {"auth": "keys", "model": "m", "prices": PRICES, **provider}


@pytest.fixture
async def service(serve: Serve, fake: ProviderFake) -> Service:
    """A service with a prepaid user."""
    service = await serve(**build_settings(fake), seeded=True)
    await make_prepaid(service.services.database)
    return service


async def measure_hold(caller: httpx2.AsyncClient) -> int:
    """The upper bound of the charge of a question, from a refusal without funds."""
    problem = is_problem(await caller.post("/ai/test", json=ASK), 402, "out_of_credit")
    assert problem["available"] == "0"
    return to_nano_usd(Decimal(problem["needed"]))


class Gate:
    """Counts refusals; opens when all others are refused."""

    def __init__(self) -> None:
        self._refused, self._opened = 0, asyncio.Event()

    def refuse(self) -> int:
        """Count a refusal; return its status."""
        self._refused += 1
        if self._refused == REQUESTS - ADMITTED:
            self._opened.set()
        return 402

    async def wait(self) -> None:
        """Wait until it is open."""
        async with asyncio.timeout(60):
            await self._opened.wait()


async def send_plain(caller: httpx2.AsyncClient, gate: Gate) -> int:
    """Send one prompt without streaming."""
    response = await caller.post("/ai/test", json=ASK)
    return gate.refuse() if response.status_code == 402 else response.status_code


async def read_stream(caller: httpx2.AsyncClient, gate: Gate) -> int:
    """Open a stream and read it to its end."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 402:
            return gate.refuse()
        if response.status_code != 503:
            assert (await collect(response))[-1].name == "done"
        return response.status_code


async def cut_stream(caller: httpx2.AsyncClient, gate: Gate) -> int:
    """Open a stream and disconnect after its first event, when all others are refused."""
    async with caller.stream("POST", "/ai/stream", json=ASK) as response:
        if response.status_code == 402:
            return gate.refuse()
        if response.status_code == 503:
            return 503
        async with aclosing(events(response)) as stream:
            await anext(stream)
            await gate.wait()
        return response.status_code


async def send_until_available(way: Any, caller: httpx2.AsyncClient, gate: Gate) -> int:
    """Repeat a request that a slow PostgreSQL has not started; return its status."""
    while True:
        status: int = await way(caller, gate)
        if status != 503:
            return status


@pytest.mark.parametrize("way", [send_plain, read_stream, cut_stream])
async def test_parallel_requests_do_not_exceed_the_wallet(
    services: Sequence[Service], fake: ProviderFake, way: Any
) -> None:
    """With funds for ten, ten are admitted and 190 get 402; the wallet has paid the ten rows."""
    database = services[0].services.database
    await make_prepaid(database)
    key = await make_key(services[0], "alice")
    released, gate = asyncio.Event(), Gate()
    fake.default = Behaviour(hold=released)
    async with AsyncExitStack() as stack:
        limits = httpx2.Limits(max_connections=REQUESTS)
        callers = [
            await stack.enter_async_context(client(service, key, limits=limits))
            for service in services
        ]
        funds = ADMITTED * await measure_hold(callers[0])
        await add_funds(database, funds)
        tasks = [
            asyncio.create_task(send_until_available(way, callers[n % len(callers)], gate))
            for n in range(REQUESTS)
        ]
        await gate.wait()
        await fake.wait_calls(ADMITTED)
        assert way is cut_stream or await get_balance(database) == funds
        released.set()
        statuses = await asyncio.gather(*tasks)
        for service in services:
            await service.wait_idle()
        rows = (await callers[0].get("/ai/logs", params={"limit": 200})).json()["items"]

    assert sorted(statuses) == [200] * ADMITTED + [402] * (REQUESTS - ADMITTED)
    assert len(fake.calls) == ADMITTED
    assert len(rows) == ADMITTED
    charges = sum(to_nano_usd(Decimal(row.get("charge", 0))) for row in rows)
    assert await get_balance(database) == funds - charges >= 0
    assert -sum((await read_debits(database)).values()) == charges
    if way is not cut_stream:
        assert charges > 0


async def test_an_answer_costs_its_cost_and_the_markup(service: Service) -> None:
    """The charge is in the answer and its row, was debited once, and the rest is not held."""
    await add_funds(service.services.database, 10**9)
    async with client(service, await make_key(service, "alice")) as alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()
        await service.wait_idle()
        row = (await alice.get(f"/ai/logs/{answer['id']}")).json()
    cost = to_nano_usd(Decimal(answer["estimated_cost"]))
    charge = to_nano_usd(Decimal(answer["charge"]))
    assert charge == round(cost * MARKUP)
    assert row["charge"] == answer["charge"]
    assert await read_debits(service.services.database) == {f"answer:{answer['id']}:2": -charge}
    assert await get_balance(service.services.database) == 10**9 - charge


async def test_without_funds_nothing_is_started(service: Service, fake: ProviderFake) -> None:
    """Every route refuses before the first byte; the OpenAI protocol has its own form."""
    async with client(service, await make_key(service, "alice")) as alice:
        for response in (
            await alice.post("/ai/test", json=ASK),
            await alice.post("/ai/stream", json=ASK),
            await alice.get("/ai/stream", params={"prompt": "Why?", "grounded": False}),
            await alice.post("/ai/answers", json=ASK),
        ):
            problem = is_problem(response, 402, "out_of_credit")
            assert "retry-after" not in response.headers
            assert "top up" in problem["detail"]
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", CHAT | {"stream": True}),
            ("/v1/responses", {"model": "m", "input": "Why?"}),
            ("/v1/embeddings", {"model": "m", "input": "Why?"}),
        ):
            response = await alice.post(path, json=body)
            assert response.status_code == 429, path
            assert response.json()["error"]["code"] == "insufficient_quota"
            assert response.headers["x-should-retry"] == "false"
        called = await alice.post(
            "/mcp", json=build_call("ask", question="返品は何日以内にできますか？"), headers=HEADERS
        )
    assert "the wallet has 0 USD" in called.text
    assert fake.calls == []
    assert service.services.quota.statistics().holds == 0


async def test_other_users_pay_nothing(service: Service) -> None:
    """A user without a prepaid plan is answered without a wallet, and the row has no charge."""
    async with client(service, await make_key(service, "bob")) as bob:
        answer = (await bob.post("/ai/test", json=ASK)).json()
    await service.wait_idle()
    assert answer["status"] == "completed"
    assert "charge" not in answer
    assert await read_debits(service.services.database, "bob") == {}


async def test_a_larger_context_needs_more_funds(service: Service, fake: ProviderFake) -> None:
    """Funds for the question, but not for the passages found, are released again."""
    body = {"prompt": "返品は何日以内にできますか？", "max_tokens": 100}
    database = service.services.database
    async with client(service, await make_key(service, "alice")) as alice:
        first = is_problem(await alice.post("/ai/test", json=body), 402, "out_of_credit")
        await add_funds(database, to_nano_usd(Decimal(first["needed"])) + 1)
        grown = is_problem(await alice.post("/ai/test", json=body), 402, "out_of_credit")
        assert Decimal(grown["needed"]) > Decimal(first["needed"])
        assert fake.calls == []
        await add_funds(database, to_nano_usd(Decimal(grown["needed"])), cause="payment:pi_2")
        assert (await alice.post("/ai/test", json=body)).status_code == 200
    assert service.services.quota.statistics().holds == 0


async def test_a_model_without_a_price_is_refused(service: Service, fake: ProviderFake) -> None:
    """A prepaid user cannot use a model whose charge is unknown."""
    await add_funds(service.services.database, 10**9)
    async with client(service, await make_key(service, "alice")) as alice:
        response = await alice.post("/ai/test", json=ASK | {"model": "nobody-knows"})
    is_problem(response, 400, "unpriced_model")
    assert fake.calls == []


async def test_unknown_usage_is_not_charged(service: Service, fake: ProviderFake) -> None:
    """An answer whose usage is unknown has no charge, and its hold ends with the row."""
    await add_funds(service.services.database, 10**9)
    fake.default = Behaviour(cut_after=0)
    async with client(service, await make_key(service, "alice")) as alice:
        response = await alice.post("/ai/test", json=ASK)
        await service.wait_idle()
        (row,) = (await alice.get("/ai/logs")).json()["items"]
    assert (response.status_code, row["usage_source"]) == (502, "unknown")
    assert "charge" not in row
    assert await get_balance(service.services.database) == 10**9


async def test_a_chat_is_limited_to_the_funds(service: Service, fake: ProviderFake) -> None:
    """Without a maximum of the client, the completion is as long as the wallet can pay."""
    await add_funds(service.services.database, 1_000_000)  # a thousandth of a dollar
    async with client(service, await make_key(service, "alice")) as alice:
        response = await alice.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200, response.text
    (call,) = fake.calls
    limit = call.body.get("max_completion_tokens") or call.body["max_tokens"]
    assert 100 < limit < 400  # at 2.5 USD per million tokens


async def test_customer_prices_precede_the_markup(serve: Serve, fake: ProviderFake) -> None:
    """A model with a price for customers is charged by it, whatever it costs."""
    prices = {"m": ModelPrice(input=Decimal(10), output=Decimal(20))}
    service = await serve(**build_settings(fake), customer_prices=prices)
    await make_prepaid(service.services.database)
    await add_funds(service.services.database, 10**9)
    async with client(service, await make_key(service, "alice")) as alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()
    expected = answer["prompt_tokens"] * 10_000 + answer["completion_tokens"] * 20_000
    assert answer["charge"] == format_usd(expected)


async def test_a_refund_of_spent_money_refuses_new_answers(service: Service) -> None:
    """With a negative balance even a free model is refused, until there are funds again."""
    database = service.services.database
    await add_funds(database, -5, cause="refund:re_1")
    free = ASK | {"model": "extractive", "grounded": True, "prompt": "返品は何日以内にできますか？"}
    async with client(service, await make_key(service, "alice")) as alice:
        is_problem(await alice.post("/ai/test", json=free), 402, "out_of_credit")
        await add_funds(database, 5)
        assert (await alice.post("/ai/test", json=free)).status_code == 200


@pytest.mark.slow
async def test_a_kill_debits_nothing_twice(tmp_path: Path, fake: ProviderFake) -> None:
    """Ten of 200 are admitted before a kill; afterwards the same funds admit ten again."""
    await migrate(tmp_path)
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    created = await store.create_key(database, BOOTSTRAP, store.NewKey(user_id="alice"), keys_max=9)
    await make_prepaid(database)
    options = {
        "OPENAI_BASE_URL": fake.base_url,
        "KOTAE_MODEL": "m",
        "KOTAE_AUTH": "keys",
        "KOTAE_PRICES": '{"m": {"input": "1", "output": "2"}}',
    }
    fake.default = Behaviour(hang_after=2)
    async with serving(tmp_path, **options) as first:
        first.client.headers.update(bearer(created))
        funds = ADMITTED * await measure_hold(first.client)
        await add_funds(database, funds)
        tasks = [
            asyncio.create_task(first.client.post("/ai/test", json=ASK)) for _ in range(REQUESTS)
        ]
        await fake.wait_calls(ADMITTED)
        async with asyncio.timeout(20):
            while sum(task.done() for task in tasks) < REQUESTS - ADMITTED:
                await asyncio.sleep(0.01)
        first.signal(signal.SIGKILL)
        await first.wait()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [r for r in ended if isinstance(r, httpx2.Response) and r.status_code == 402]
    assert (len(refused), len(fake.calls)) == (REQUESTS - ADMITTED, ADMITTED)
    fake.default = Behaviour()
    async with serving(tmp_path, **options) as second:
        second.client.headers.update(bearer(created))
        responses = await asyncio.gather(
            *(second.client.post("/ai/test", json=ASK) for _ in range(ADMITTED))
        )
        rows = (await second.client.get("/ai/logs", params={"limit": 200})).json()["items"]
        second.signal(signal.SIGTERM)
        await second.wait()
    assert [response.status_code for response in responses] == [200] * ADMITTED
    charges = sum(to_nano_usd(Decimal(response.json()["charge"])) for response in responses)
    assert await get_balance(database) == funds - charges >= 0
    assert len(await read_debits(database)) == ADMITTED
    assert {row["status"] for row in rows} <= {"interrupted", "completed"}
    await database.close()


@pytest.mark.slow
async def test_debits_in_the_journal_count_after_a_restart(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """Killed before the row is written, the next process debits it before it holds credit."""
    await migrate(tmp_path)
    path = tmp_path / "kotae.db"
    database = Database(f"sqlite+aiosqlite:///{path}")
    created = await store.create_key(database, BOOTSTRAP, store.NewKey(user_id="alice"), keys_max=9)
    await make_prepaid(database)
    options = {
        "OPENAI_BASE_URL": fake.base_url,
        "KOTAE_MODEL": "m",
        "KOTAE_AUTH": "keys",
        "KOTAE_PRICES": '{"m": {"input": "1", "output": "2"}}',
    }
    async with serving(tmp_path, **options) as first:
        first.client.headers.update(bearer(created))
        funds = await measure_hold(first.client)
        await add_funds(database, funds)
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            answer = (await first.client.post("/ai/test", json=ASK)).json()
            first.signal(signal.SIGKILL)
            await first.wait()
            lock.execute("ROLLBACK")
    assert await get_balance(database) == funds
    async with serving(tmp_path, **options) as second:
        second.client.headers.update(bearer(created))
        is_problem(await second.client.post("/ai/test", json=ASK), 402, "out_of_credit")
        second.signal(signal.SIGTERM)
        await second.wait()
    charge = to_nano_usd(Decimal(answer["charge"]))
    assert await read_debits(database) == {f"answer:{answer['id']}:2": -charge}
    assert await get_balance(database) == funds - charge > 0
    await database.close()
