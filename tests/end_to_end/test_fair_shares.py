"""One user at a limit of the service: others are served, and the refusal is about that user."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from service.core.limits import ServiceLimits
from tests.access import SECRET, client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.problems import is_problem

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "Say something."}]}
CONNECTIONS = 8


@dataclass(frozen=True)
class Users:
    """Clients of two users of a service with small limits."""

    service: Service
    alice: httpx2.AsyncClient
    bob: httpx2.AsyncClient


@pytest.fixture
async def users(serve: Serve, fake: ProviderFake) -> AsyncIterator[Users]:
    """A service in which each user can have two of everything."""
    service = await serve(
        auth="keys",
        secret=SecretStr(SECRET),
        openai_base_url=fake.base_url,
        model="fake-model",
        answers_max=4,
        documents_max=4,
        connections_max=CONNECTIONS,
        resume_bytes_max=1_048_576,
        limits=ServiceLimits(searches_max=4, uploads_at_once_max=4),
    )
    async with AsyncExitStack() as stack:
        alice, bob = [
            await stack.enter_async_context(client(service, await make_key(service, name)))
            for name in ("alice", "bob")
        ]
        yield Users(service, alice, bob)


def list_numbers(problem: dict[str, Any]) -> list[int]:
    """The numbers in the detail of a problem."""
    return [int(number) for number in re.findall(r"\d+", problem["detail"])]


async def test_documents_of_one_user_leave_room_for_others(users: Users) -> None:
    """A user with as many documents as one user can have learns that, and nothing of others."""
    service = users.service
    await service.client.post("/ai/upload", json={"text": "of the admin"})
    for n in range(2):
        assert (await users.alice.post("/ai/upload", json={"text": f"text {n}"})).status_code == 201
    refused = await users.alice.post("/ai/upload", json={"text": "another"})
    again = await users.alice.post("/ai/upload", json={"text": "text 1"})
    other = await users.bob.post("/ai/upload", json={"text": "of bob"})
    full = await users.bob.post("/ai/upload", json={"text": "of bob, too"})

    assert list_numbers(is_problem(refused, 409, "documents_full")) == [2, 2]
    assert (again.status_code, other.status_code) == (200, 201)
    assert list_numbers(is_problem(full, 409, "documents_full")) == []


async def test_answers_of_one_user_leave_room_for_others(users: Users, fake: ProviderFake) -> None:
    """While one user's answers wait for the provider, another user's answer is completed."""
    fake.next(Behaviour(hang_after="headers"), Behaviour(hang_after="headers"))
    running = [(await users.alice.post("/ai/answers", json=FREE)).json()["id"] for _ in range(2)]
    await fake.wait_calls(2)
    refused = [await users.alice.post(path, json=FREE) for path in ("/ai/test", "/ai/answers")]
    other = await users.bob.post("/ai/test", json=FREE)
    for answer_id in running:
        await users.alice.delete(f"/ai/answers/{answer_id}")
    await users.service.wait_idle()
    later = await users.alice.post("/ai/test", json=FREE)

    for response in refused:
        assert list_numbers(is_problem(response, 503, "overloaded")) == [2, 2]
    assert (other.status_code, later.status_code) == (200, 200)


async def test_answers_that_search_count(users: Users) -> None:
    """Answers count from their admission, also while they wait for the search."""
    question = {"prompt": "Why?", "grounded": True}
    async with users.service.services.retrieval._turns.turn(), asyncio.timeout(20):
        waiting = [
            asyncio.create_task(users.alice.post("/ai/test", json=question)) for _ in range(2)
        ]
        while users.service.services.retrieval.waiting_searches < 2:
            await asyncio.sleep(0.001)
        refused = await users.alice.post("/ai/test", json=question)
        other = asyncio.create_task(users.bob.post("/ai/test", json=question))
        while users.service.services.retrieval.waiting_searches < 3:
            await asyncio.sleep(0.001)

    is_problem(refused, 503, "overloaded")
    assert {(await task).status_code for task in [*waiting, other]} == {200}
    assert users.service.services.answers._in_progress.total == 0


async def test_calls_of_one_user_leave_slots_for_others(serve: Serve, fake: ProviderFake) -> None:
    """A user whose calls hang does not occupy every slot for provider calls."""
    service = await serve(
        auth="keys",
        secret=SecretStr(SECRET),
        openai_base_url=fake.base_url,
        model="fake-model",
        provider_calls_max=2,
    )
    fake.next(Behaviour(hang_after="headers"))
    async with (
        client(service, await make_key(service, "alice")) as alice,
        client(service, await make_key(service, "bob")) as bob,
    ):
        for _ in range(3):
            await alice.post("/ai/answers", json=FREE)
        await fake.wait_calls(1)
        other = await bob.post("/ai/test", json=FREE)

    assert (other.status_code, len(fake.calls)) == (200, 2)


async def test_searches_of_one_user_leave_room_for_others(users: Users) -> None:
    """A user with too many searches is refused, another one waits for one search of theirs."""
    retrieval = users.service.services.retrieval
    order: list[str] = []

    async def search(who: httpx2.AsyncClient, name: str) -> httpx2.Response:
        response = await who.get("/ai/search", params={"q": "Why?"})
        order.append(name)
        return response

    async with retrieval._turns.turn("other"), asyncio.timeout(20):
        tasks = [asyncio.create_task(search(users.alice, "alice")) for _ in range(2)]
        while retrieval.waiting_searches < 2:
            await asyncio.sleep(0.001)
        refused = await users.alice.get("/ai/search", params={"q": "Why?"})
        tasks.append(asyncio.create_task(search(users.bob, "bob")))
        while retrieval.waiting_searches < 3:
            await asyncio.sleep(0.001)
    responses = await asyncio.gather(*tasks)

    assert list_numbers(is_problem(refused, 503, "overloaded")) == [2, 2]
    assert {response.status_code for response in responses} == {200}
    assert order[-1] == "alice"


async def test_uploads_of_one_user_leave_room_for_others(users: Users) -> None:
    """A user with too many uploads in progress is refused, another one is not."""
    with users.service.services.uploads.hold("alice", 2):
        refused = await users.alice.post("/ai/upload", json={"text": "of alice"})
        other = await users.bob.post("/ai/upload", json={"text": "of bob"})

    assert list_numbers(is_problem(refused, 503, "overloaded")) == [2, 2]
    assert other.status_code == 201


async def test_open_requests_of_one_user_leave_room_for_others(
    users: Users, fake: ProviderFake
) -> None:
    """A user cannot occupy all connections by waiting; no answer is started for a refused one."""
    fake.next(Behaviour(hang_after=1))
    started = (await users.alice.post("/ai/answers", json=FREE)).json()
    await fake.wait_calls(1)
    url = f"/ai/answers/{started['id']}/events"
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS // 2):
            reader = await make_reader(stack, users, "alice")
            await stack.enter_async_context(reader.stream("GET", url))
        refused = [
            await users.alice.get(url),
            await users.alice.post("/ai/stream", json=FREE),
            await users.alice.post("/ai/test", json=FREE),
            await users.alice.post("/v1/chat/completions", json=CHAT),
            await users.alice.get("/ai/stream?prompt=a&grounded=false"),
        ]
        other = await users.bob.post("/ai/stream", json=FREE)

    for response in refused:
        assert response.status_code == 503
        assert list_numbers(response.json()) == [4, 4]
    assert (other.status_code, len(fake.calls)) == (200, 2)
    async with asyncio.timeout(10):
        while users.service.services.open_requests.total:
            await asyncio.sleep(0.002)


async def make_reader(stack: AsyncExitStack, users: Users, name: str) -> httpx2.AsyncClient:
    """A client with its own connection."""
    key = await make_key(users.service, name)
    return await stack.enter_async_context(client(users.service, key))


async def test_buffers_of_one_user_leave_room_for_others(users: Users, fake: ProviderFake) -> None:
    """When one user's streams fill the buffers, those of another user are still resumable."""
    fake.next(
        Behaviour(deltas=["x" * 700_000], hang_after=1),
        Behaviour(hang_after=1),
        Behaviour(hang_after=1),
    )
    budget = users.service.services.answers._registry.buffers
    first = (await users.alice.post("/ai/answers", json=FREE)).json()
    async with asyncio.timeout(20):
        while not budget.is_share_full("alice"):
            await asyncio.sleep(0.002)
    second = (await users.alice.post("/ai/answers", json=FREE)).json()
    other = (await users.bob.post("/ai/answers", json=FREE)).json()

    assert [answer["resumable"] for answer in (first, second, other)] == [True, False, True]


async def test_only_user_of_open_mode_can_use_everything(serve: Serve) -> None:
    """In open mode there are no others, so that the only user can use each limit completely."""
    service = await serve(documents_max=2)
    for n in range(2):
        assert (
            await service.client.post("/ai/upload", json={"text": f"text {n}"})
        ).status_code == 201
    refused = await service.client.post("/ai/upload", json={"text": "another"})

    assert list_numbers(is_problem(refused, 409, "documents_full")) == [2, 2]
