"""Two replicas on one PostgreSQL database: an answer can be read and stopped at any of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from datetime import timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.core.encoding import create_id, read_slot, utc_now
from service.core.errors import DatabaseUnavailable
from service.core.provider_file import ModelPrice
from service.workers.billing import BillingWorker
from service.workers.budgets import BudgetEvaluator
from tests.access import bearer, make_key
from tests.billing import connect, list_events, use
from tests.conftest import Serve, Service, http_client
from tests.fakes.behaviour import Behaviour, default_deltas
from tests.fakes.provider import ProviderFake
from tests.fakes.receiver import SECRET, ReceiverFake
from tests.fakes.stripe import KEY, LOST, METER, StripeFake
from tests.postgres import PostgresServer, temporary_database
from tests.proxies import caddy_replicas
from tests.redis import running_redis
from tests.sse import events

pytestmark = pytest.mark.slow
ROOT_SECRET = "root-secret-of-the-tests-with-32-characters"


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a migrated database."""
    async with temporary_database(postgres) as database:
        yield database._url


class Replicas:
    """Starts replicas with a provider fake."""

    def __init__(self, serve: Serve, fake: ProviderFake, url: str, folder: Path) -> None:
        self._serve, self._fake, self._url, self._folder = serve, fake, url, folder
        self.started: list[Service] = []

    async def start(self, **settings: Any) -> Service:
        """Start another replica, and wait until all replicas see it."""
        number = len(self.started)
        service = await self._serve(
            data_dir=self._folder / f"replica{number}",
            journal_spool="none",
            database_url=self._url,
            peer_address="127.0.0.1:0",
            openai_base_url=self._fake.base_url,
            openai_api_key="k",
            model="m",
            **settings,
        )
        self.started.append(service)
        for other in self.started:
            await other.services.workers["membership"].run_checks()  # type: ignore[attr-defined]
        return service


@pytest.fixture
def replicas(url: str, serve: Serve, fake: ProviderFake, tmp_path: Path) -> Replicas:
    """Replicas on one database."""
    return Replicas(serve, fake, url, tmp_path)


async def start_answer(service: Service, prompt: str = "Why?", **options: Any) -> dict[str, Any]:
    """Start an answer and return its id and URL."""
    body = {"prompt": prompt, "grounded": False}
    response = await service.client.post("/ai/answers", json=body, **options)
    assert response.status_code == 202, response.text
    started: dict[str, Any] = response.json()
    return started


async def read_all(client: httpx2.AsyncClient, path: str, **options: Any) -> bytes:
    """Read a stream to its end."""
    async with client.stream("GET", path, **options) as response:
        assert response.status_code == 200, await response.aread()
        return await response.aread()


async def wait_readers(owner: Service, answer_id: str, count: int) -> None:
    """Wait until an answer has so many readers."""
    stream = await owner.services.answers.find_stream(answer_id, None)
    async with asyncio.timeout(20):
        while stream.readers < count:
            await asyncio.sleep(0.01)


def strip(data: bytes) -> bytes:
    """The events without the delay of reconnects, which begins each response."""
    return data.replace(b"retry: 2000\n", b"")


async def test_an_answer_is_read_at_another_replica(replicas: Replicas, fake: ProviderFake) -> None:
    """Its events have the same bytes there, while it runs and after its end."""
    first, second = await replicas.start(), await replicas.start()
    hold = asyncio.Event()
    fake.next(Behaviour(hold=hold, hold_after=3))
    answer = await start_answer(first)
    path = f"/ai/answers/{answer['id']}/events"
    running = await second.client.get(f"/ai/answers/{answer['id']}")
    reading = [asyncio.create_task(read_all(service.client, path)) for service in (first, second)]
    await wait_readers(first, answer["id"], 2)
    hold.set()
    here, there = await asyncio.gather(*reading)
    ended = await asyncio.gather(
        *(service.client.get(f"/ai/answers/{answer['id']}") for service in (first, second))
    )

    assert read_slot(answer["id"]) == 0
    assert (running.status_code, running.json()["status"]) == (202, "in_progress")
    assert here.count(b"event: done") == 1
    assert strip(here) == strip(there)
    assert ended[0].json() == ended[1].json()
    assert len(fake.calls) == 1


async def test_a_ticket_is_redeemed_by_the_replica_that_issued_it(replicas: Replicas) -> None:
    """Through another replica it is accepted once; a reconnect with an event id is accepted."""
    first, second = await replicas.start(), await replicas.start()
    answer = await start_answer(first)
    received = await read_all(second.client, answer["events_url"])
    again = await second.client.get(answer["events_url"])
    last = received.decode().split("id: ")[-2].split("\n")[0]
    resumed = await read_all(second.client, answer["events_url"], headers={"Last-Event-ID": last})
    forged = await second.client.get(answer["events_url"][:-3] + "AAA")

    assert received.count(b"event: done") == 1
    assert (again.status_code, again.json()["code"]) == (403, "ticket_invalid")
    assert resumed
    assert received.endswith(strip(resumed))
    assert forged.status_code == 403


async def test_stopping_at_another_replica_closes_the_provider_call(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """The call is closed within a second, and the row says so."""
    first, second = await replicas.start(), await replicas.start()
    fake.next(Behaviour(endless=True, gap=0.01))
    answer = await start_answer(first)
    (call,) = await fake.wait_calls(1)
    await fake.wait_chunks(call, 3)
    stopped = await second.client.delete(f"/ai/answers/{answer['id']}")
    await fake.wait_ended(call, 1)
    rows = await first.rows()

    assert stopped.status_code == 204
    assert [row["status"] for row in rows] == ["stopped"]


async def test_a_stream_is_resumed_at_any_replica_after_any_event(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """While it runs, the rest has the same bytes at every replica; beyond the end there is 204."""
    first, second = await replicas.start(), await replicas.start()
    hold = asyncio.Event()
    fake.next(Behaviour(chunks=20, hold=hold, hold_after=15))
    prompt = {"prompt": "日本語 and English", "grounded": "false"}

    async def resume(service: Service, event_id: str) -> bytes:
        headers = {"Last-Event-ID": event_id} if event_id else {}
        return await read_all(service.client, "/ai/stream", params=prompt, headers=headers)

    whole = asyncio.create_task(resume(first, ""))
    (call,) = await fake.wait_calls(1)
    await fake.wait_chunks(call, 15)
    answer_id = first.services.queue.list_open()[0].id
    ends = accumulate(map(len, default_deltas(call.prompt, 20)[:15]))
    ids = [f"{answer_id}.{position}" for position in (0, *ends)]
    pairs = [
        asyncio.create_task(resume(service, event_id))
        for event_id in ids
        for service in (first, second)
    ]
    await wait_readers(first, answer_id, len(pairs) + 1)
    hold.set()
    received, *rests = [strip(data) for data in await asyncio.gather(whole, *pairs)]
    beyond = await second.client.get(
        "/ai/stream", params=prompt, headers={"Last-Event-ID": f"{answer_id}.99999"}
    )

    for n, event_id in enumerate(ids):
        assert rests[2 * n] == rests[2 * n + 1]
        assert received.endswith(rests[2 * n])
        assert f"id: {event_id}\n".encode() not in rests[2 * n]
    assert beyond.status_code == 204
    assert len(fake.calls) == 1


async def test_a_disconnect_at_another_replica_is_noticed_by_the_owner(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """The answer ends when its last reader has left for the resume time."""
    first, second = (
        await replicas.start(resume_seconds=0),
        await replicas.start(resume_seconds=0),
    )
    fake.next(Behaviour(endless=True, gap=0.01))
    answer = await start_answer(first)
    async with (
        second.client.stream("GET", answer["events_url"]) as response,
        aclosing(events(response)) as received,
    ):
        await anext(received)
        (call,) = await fake.wait_calls(1)
    await fake.wait_ended(call, 5)

    assert [row["status"] for row in await first.rows()] == ["client_gone"]


async def test_other_users_find_nothing_at_any_replica(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """The owner checks the visibility again; unknown ids are not found."""
    settings = {"auth": "keys", "secret": ROOT_SECRET}
    first, second = await replicas.start(**settings), await replicas.start(**settings)
    mine, other = await make_key(first, "mine"), await make_key(first, "other")
    answer = await start_answer(first, headers=bearer(mine))
    paths = [f"/ai/answers/{answer['id']}", f"/ai/answers/{answer['id']}/events"]
    unknown = f"/ai/answers/{create_id(utc_now(), 0)}"
    async with http_client(second.url) as client:
        statuses = [(await client.get(path, headers=bearer(other))).status_code for path in paths]
        statuses.append((await client.delete(paths[0], headers=bearer(other))).status_code)
        statuses.append((await client.get(unknown, headers=bearer(mine))).status_code)
        anonymous = await client.get(paths[0])
        allowed = await client.get(paths[0], headers=bearer(mine))

    assert statuses == [404] * 4
    assert anonymous.status_code == 401
    assert allowed.status_code in {200, 202}


async def test_a_revoked_key_ends_its_streams_at_every_replica(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """Revoked at one replica, the stream that is read through the other ends within 2 s."""
    settings = {"auth": "keys", "secret": ROOT_SECRET}
    first, second = await replicas.start(**settings), await replicas.start(**settings)
    key = await make_key(first, "u")
    fake.next(Behaviour(endless=True, gap=0.01))
    answer = await start_answer(first, headers=bearer(key))
    path = f"/ai/answers/{answer['id']}/events"
    async with (
        http_client(second.url) as client,
        client.stream("GET", path, headers=bearer(key)) as response,
    ):
        chunks = response.aiter_bytes()
        await anext(chunks)
        await fake.wait_calls(1)
        await second.client.delete(f"/ai/keys/{key.id}")
        async with asyncio.timeout(4):
            try:
                async for _ in chunks:
                    pass
            except httpx2.HTTPError:
                pass

    await fake.wait_idle()


async def test_the_peer_listener_serves_nothing_but_signed_requests(replicas: Replicas) -> None:
    """Public routes refuse signatures, and the listener refuses everything without one."""
    service = await replicas.start()
    address = service.services.workers["membership"].replicas[0].address  # type: ignore[attr-defined]
    async with http_client(f"http://{address}") as peer:
        statuses = [
            (await peer.get(path, headers=headers)).status_code
            for path, headers in (
                ("/health/live", {}),
                ("/ai/logs", {}),
                (f"/ai/answers/{create_id(utc_now(), 0)}", {}),
                ("/", {"kotae-peer": "e30.e30"}),
            )
        ]
    public = await service.client.get("/ai/logs", headers={"kotae-peer": "e30.e30"})

    assert statuses == [403] * 4
    assert public.status_code == 422


async def test_an_answer_of_a_replica_that_has_left_is_read_from_its_row(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """Its row is served by the others; unknown ids of its slot are not found."""
    first, second = await replicas.start(), await replicas.start()
    answer = await start_answer(first)
    await first.rows()
    first.server.should_exit = True
    first.server.handle_exit(15, None)
    async with asyncio.timeout(10):
        while second.services.workers["membership"].statistics().replicas > 1:  # type: ignore[attr-defined]
            await second.services.workers["membership"].run_checks()  # type: ignore[attr-defined]
    reply = await second.client.get(f"/ai/answers/{answer['id']}")
    unknown = await second.client.get(f"/ai/answers/{create_id(utc_now(), 0)}")

    assert reply.status_code == 200
    assert unknown.status_code == 404


async def test_readiness_and_metrics_name_the_leader(replicas: Replicas) -> None:
    """One replica leads, and both see each other."""
    services = [await replicas.start(), await replicas.start()]
    members = [
        (await service.client.get("/health/ready")).json()["membership"] for service in services
    ]
    metrics = [(await service.client.get("/metrics")).text for service in services]

    assert [member["slot"] for member in members] == [0, 1]
    assert [member["leader"] for member in members] == [True, False]
    assert all(member["lease"] and member["replicas"] == 2 for member in members)
    for number, text in enumerate(metrics):
        assert f"kotae_replica_slot {number}.0" in text
        assert f"kotae_replica_leader {1 - number}.0" in text
        assert "kotae_replicas 2.0" in text


async def test_a_log_row_of_another_replica_is_read_at_once(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """Rows that are still on their way to the database are awaited at the other replica."""
    first, second = await replicas.start(), await replicas.start()
    body = {"prompt": "Why?", "grounded": False}
    for _ in range(5):
        answer = (await first.client.post("/ai/test", json=body)).json()
        row = await second.client.get(f"/ai/logs/{answer['id']}")
        threads = (await second.client.get("/ai/conversations")).json()
        assert row.status_code == 200
        assert answer["id"] in {thread["id"] for thread in threads["items"]}


async def test_a_conversation_is_one_at_all_replicas(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """It is continued at another replica, busy there, and an erasure there stops its answer."""
    first, second = await replicas.start(), await replicas.start()
    body = {"prompt": "Why?", "grounded": False}
    answer = (await first.client.post("/ai/test", json=body)).json()
    follow_up = body | {"conversation_id": answer["id"]}
    continued = (await second.client.post("/ai/test", json=follow_up)).json()
    fake.next(Behaviour(endless=True, gap=0.01))
    running = await first.client.post("/ai/answers", json=follow_up)
    calls = await fake.wait_calls(3)
    busy = await second.client.post("/ai/test", json=follow_up)
    erased = await second.client.delete(f"/ai/conversations/{answer['id']}")
    await fake.wait_ended(calls[-1], 2)
    rows = await first.rows()
    gone = await first.client.post("/ai/test", json=follow_up)
    events = await second.client.get(f"/ai/answers/{running.json()['id']}/events")

    roles = [message["role"] for message in calls[1].body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert continued["conversation_id"] == answer["id"]
    assert (busy.status_code, busy.json()["code"]) == (409, "conversation_busy")
    assert erased.status_code == 204
    assert [row["prompt"] for row in rows] == [""] * 3
    assert (gone.status_code, events.status_code) == (410, 410)


KEYED = {"prompt": "Why?", "grounded": False}


def read_id(body: bytes) -> bytes:
    """The id of the answer in the first event or chunk of a stream."""
    return body.partition(b'{"id":"')[2].partition(b'"')[0]


async def test_one_key_at_two_replicas_is_one_call(replicas: Replicas, fake: ProviderFake) -> None:
    """Of 1,000 requests with one key, sent to both, one calls the provider; all get its answer."""
    first, second = await replicas.start(), await replicas.start()
    headers = {"Idempotency-Key": "order-1"}

    async def ask(service: Service) -> httpx2.Response:
        while True:  # a client retries when it is too much at once
            response = await service.client.post("/ai/test", json=KEYED, headers=headers)
            if response.status_code != 503:
                return response

    responses = await asyncio.gather(*(ask((first, second)[n % 2]) for n in range(1_000)))

    assert {response.status_code for response in responses} == {200}
    assert len({response.json()["id"] for response in responses}) == 1
    assert len(fake.calls) == 1
    assert len(await first.rows()) + len(await second.rows()) == 2  # one row, in both lists


@pytest.mark.parametrize("path", ["/ai/stream", "/v1/chat/completions"])
async def test_a_stream_with_a_key_continues_at_the_owner(
    replicas: Replicas, fake: ProviderFake, path: str
) -> None:
    """A repeated request for a running stream gets the same answer from the other replica."""
    first, second = await replicas.start(), await replicas.start()
    hold = asyncio.Event()
    fake.next(Behaviour(deltas=["one ", "two"], holds={1: hold}))
    body = KEYED if path == "/ai/stream" else {
        "model": "m", "stream": True, "messages": [{"role": "user", "content": "Why?"}]
    }  # fmt: skip
    headers = {"Idempotency-Key": "stream-1"}

    async def read(service: Service) -> bytes:
        async with service.client.stream("POST", path, json=body, headers=headers) as response:
            assert response.status_code == 200
            return await response.aread()

    reading = [asyncio.create_task(read(first))]
    await fake.wait_calls(1)
    reading.append(asyncio.create_task(read(second)))
    hold.set()
    bodies = await asyncio.gather(*reading)

    assert len({read_id(body) for body in bodies}) == 1
    assert all(b"one " in body and b"two" in body for body in bodies)
    assert len(fake.calls) == 1


async def test_an_event_source_with_a_key_finds_its_answer(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """A browser that reconnects before the first event gets the answer from the other replica."""
    first, second = await replicas.start(), await replicas.start()
    path = "/ai/stream?prompt=Why?&grounded=false&key=browser-1"
    bodies = await asyncio.gather(*(read_all(one.client, path) for one in (first, second)))

    assert len({read_id(body) for body in bodies}) == 1
    assert len(fake.calls) == 1


async def test_a_key_of_another_request_is_a_conflict_at_each_replica(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """While the answer runs at the first replica, the second refuses a different request."""
    first, second = await replicas.start(), await replicas.start()
    hold = asyncio.Event()
    fake.next(Behaviour(deltas=["one ", "two"], holds={1: hold}))
    headers = {"Idempotency-Key": "order-2"}
    asking = asyncio.create_task(first.client.post("/ai/test", json=KEYED, headers=headers))
    await fake.wait_calls(1)
    other = KEYED | {"prompt": "What?"}
    refused = await second.client.post("/ai/test", json=other, headers=headers)
    hold.set()

    assert refused.status_code == 409
    assert (await asking).status_code == 200


async def test_a_rejected_request_leaves_its_key_free(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """A request that is refused at one replica can be repeated at another one."""
    first, second = await replicas.start(models=["m", "n"]), await replicas.start()
    headers = {"Idempotency-Key": "order-3"}
    body = KEYED | {"model": "unknown-here"}
    refused = await first.client.post("/ai/test", json=body, headers=headers)
    accepted = await second.client.post("/ai/test", json=body, headers=headers)

    assert (refused.status_code, accepted.status_code) == (400, 200)


async def test_a_balancer_uses_all_replicas_that_are_ready(
    replicas: Replicas, tmp_path: Path
) -> None:
    """Answers come from several replicas, can be read through any, and go on without one."""
    services = [await replicas.start() for _ in range(3)]
    async with (
        caddy_replicas([service.url for service in services], tmp_path) as url,
        http_client(url) as client,
    ):
        body = {"prompt": "Why?", "grounded": False}
        responses = await asyncio.gather(*(client.post("/ai/test", json=body) for _ in range(60)))
        answers = [response.json() for response in responses]
        again = [await client.get(f"/ai/answers/{answer['id']}") for answer in answers[:12]]
        services[0].services.answers.refuse_new()
        async with asyncio.timeout(20):
            while (await client.get("/health/ready")).json()["status"] != "ready":
                pass
            ready = 0
            while ready < 10:  # the balancer checks every two seconds
                status = (await client.post("/ai/test", json=body)).status_code
                ready = ready + 1 if status == 200 else 0

    assert len({read_slot(answer["id"]) for answer in answers}) > 1
    assert [response.json()["response"] for response in again] == [
        answer["response"] for answer in answers[:12]
    ]


async def test_a_retry_of_an_sdk_gets_the_answer_of_another_replica(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """The provider is called once; the retry has the whole answer."""
    first, second = await replicas.start(), await replicas.start()
    hold = asyncio.Event()
    fake.next(Behaviour(text="one two three four", hold=hold, hold_after=2))
    body = {"model": "m", "messages": [{"role": "user", "content": "Count."}], "stream": True}
    headers = {"host": "localhost", "x-stainless-retry-count": "0"}
    path = "/v1/chat/completions"
    async with first.client.stream("POST", path, json=body, headers=headers) as response:
        await anext(response.aiter_bytes())
    again = asyncio.create_task(
        second.client.post(path, json=body, headers=headers | {"x-stainless-retry-count": "1"})
    )
    forged = await second.client.post(
        path,
        json=body | {"stream": False},
        headers={"host": "localhost", "kotae-fingerprint": "00" * 32},
    )
    hold.set()
    reply = await again
    rows = await first.rows()

    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if "content" in line]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "one two three four"
    assert forged.status_code == 200
    assert len(fake.calls) == len(rows) == 2


@pytest.mark.parametrize("store", ["PostgreSQL", "Redis"])
async def test_limits_are_those_of_all_replicas_together(replicas: Replicas, store: str) -> None:
    """Of parallel requests to two replicas, as many succeed as the limit of their user allows."""
    with running_redis() if store == "Redis" else nullcontext() as server:
        settings: dict[str, Any] = {"auth": "keys", "secret": ROOT_SECRET}
        if server is not None:
            settings |= {"redis_url": server.url, "redis_seconds": 10.0}
        first, second = [await replicas.start(**settings) for _ in range(2)]
        for one in (first, second):
            await one.services.workers["quota"].run_checks()  # type: ignore[attr-defined]
        key = await make_key(first, "u")
        body = {"limits": {"requests_per_minute": 5, "tokens_per_month": 10**6}}
        (await first.client.put("/ai/users/u/quota", json=body)).raise_for_status()
        responses = await asyncio.gather(
            *(
                one.client.post("/ai/test", json=KEYED, headers=bearer(key))
                for _ in range(10)
                for one in (first, second)
            )
        )
        for one in (first, second):
            await one.wait_idle()
        usage = await second.client.get("/ai/usage", params={"user_id": "u"})

    assert sorted(response.status_code for response in responses) == [200] * 5 + [429] * 15
    amounts = usage.json()["used"]["requests_per_minute"]
    assert amounts["used"] + amounts["held"] == 5  # Redis gets charges a moment later


async def test_replicas_without_a_key_in_common_do_not_reach_each_other(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """Requests about answers of the other get 503, or the row; with both keys they reach it."""
    first = await replicas.start(secret_key="0a" * 32)
    second = await replicas.start(secret_key="0b" * 32)
    third = await replicas.start(secret_key=f"{'0b' * 32},{'0a' * 32}")
    hold = asyncio.Event()
    fake.default = Behaviour(hold=hold, hold_after=3)
    answer = await start_answer(third)
    path = f"/ai/answers/{answer['id']}"
    running = [(await service.client.get(path)).status_code for service in (first, second)]
    other = await start_answer(first)
    refused = await second.client.get(f"/ai/answers/{other['id']}")
    hold.set()
    await first.rows()
    row = await second.client.get(f"/ai/answers/{other['id']}")

    assert running == [202, 202]
    assert (refused.status_code, refused.json()["code"]) == (503, "owner_unavailable")
    assert row.status_code == 200


async def test_browsers_use_answers_of_other_replicas(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """Own pages with a session cookie, and pages of allowed origins, whose header is sent once."""
    settings = {
        "auth": "keys",
        "secret": ROOT_SECRET,
        "allowed_origins": ["https://app.example"],
    }
    first, second = await replicas.start(**settings), await replicas.start(**settings)
    fake.default = Behaviour(endless=True, gap=0.01)
    answer = await start_answer(first)
    path = f"/ai/answers/{answer['id']}"
    signed_in = await second.client.post("/auth/session")
    cookies = {"cookie": signed_in.headers["set-cookie"].split(";")[0]}
    async with http_client(second.url) as browser:
        foreign = await browser.get(
            path,
            headers={"origin": "https://app.example", "sec-fetch-site": "cross-site"}
            | bearer(ROOT_SECRET),
        )
        evil = await browser.delete(path, headers=cookies | {"origin": "https://evil.example"})
        stopped = await browser.delete(path, headers=cookies | {"origin": second.url})

    assert foreign.status_code == 202
    assert foreign.headers.get_list("access-control-allow-origin") == ["https://app.example"]
    assert (evil.status_code, stopped.status_code) == (403, 204)
    await fake.wait_idle()


async def test_urls_in_relayed_responses_are_those_of_the_client(
    replicas: Replicas, fake: ProviderFake
) -> None:
    """With the path prefix of a reverse proxy; `Location` of a repeated request is the same."""
    first = await replicas.start(root_path="/kotae")
    second = await replicas.start(root_path="/kotae")
    fake.default = Behaviour(endless=True, gap=0.01)
    body = {"prompt": "Why?", "grounded": False}
    key = {"Idempotency-Key": "k"}
    answers = [
        await service.client.post("/kotae/ai/answers", json=body, headers=key)
        for service in (first, second)
    ]
    location = answers[0].headers["location"]
    running = await second.client.get(location)
    stopped = await second.client.delete(location)

    assert location.startswith("/kotae/ai/answers/")
    assert answers[1].headers["location"] == location
    assert answers[1].json()["events_url"].startswith(location)
    assert (running.status_code, stopped.status_code) == (202, 204)
    await fake.wait_idle()


async def test_alerts_of_two_replicas_have_one_id(replicas: Replicas) -> None:
    """Only the leader evaluates and sends; after it has left, the other one continues."""
    async with ReceiverFake() as receiver:
        settings = {
            "webhook_url": receiver.url,
            "webhook_secret": SECRET,
            "webhook_private_addresses": True,
            "prices": {"m": ModelPrice(input=Decimal(1000), output=Decimal(1000))},
        }
        first, second = await replicas.start(**settings), await replicas.start(**settings)
        for n, service in enumerate((first, second)):
            body = {"name": f"b{n}", "subject": "all", "amount_usd": "0.0001", "period": "day"}
            response = await service.client.post("/ai/budgets", json=body)
            assert response.status_code == 201, response.text
            await service.client.post("/ai/test", json={"prompt": "Why?", "grounded": False})
        for service in (second, first):
            await service.wait_idle()
        workers = [service.services.workers["budgets"] for service in (first, second)]
        evaluations = [w.evaluate_budgets() for w in workers if isinstance(w, BudgetEvaluator)]
        results = await asyncio.gather(*evaluations, return_exceptions=True)
        assert {type(error) for error in results if error is not None} <= {DatabaseUnavailable}
        await receiver.wait_count(6)
    ids = {(d.data["budget"], d.data["threshold"]): set[str]() for d in receiver.deliveries}
    for delivery in receiver.deliveries:
        ids[delivery.data["budget"], delivery.data["threshold"]].add(delivery.id)
    assert len(ids) == 6
    assert all(len(same) == 1 for same in ids.values())


async def test_meter_events_of_two_replicas_are_billed_once(replicas: Replicas) -> None:
    """Only the leader sends; responses that are lost, and both working at once, double nothing."""
    async with StripeFake() as stripe:
        settings = {"stripe_key": KEY, "stripe_meter": METER, "stripe_base_url": stripe.url}
        first, second = await replicas.start(**settings), await replicas.start(**settings)
        stripe.replies.extend([LOST] * 3)
        start = utc_now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
        database = first.services.database
        for user_id in "abcdef":
            await connect(database, user_id, at=start)
            await use(database, 1500, start, user_id)
        workers = [service.services.workers["billing"] for service in (first, second)]
        async with asyncio.timeout(60):
            while [event.state for event in await list_events(database)] != ["delivered"] * 6:
                work = [w.evaluate_hours() for w in workers if isinstance(w, BillingWorker)]
                work += [w.send_due() for w in workers if isinstance(w, BillingWorker)]
                results = await asyncio.gather(*work, return_exceptions=True)
                assert {type(error) for error in results if error} <= {DatabaseUnavailable}
                await asyncio.sleep(0.05)
        assert set(stripe.count_identifiers().values()) == {1}
        assert set(stripe.sum_nano_usd().values()) == {1500}
