"""A revoked credential ends what it has begun."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP, LOCAL, Role
from service.core.auth.revocation import RevocationMonitor
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.problems import is_problem
from tests.sse import events

ASK = {"prompt": "Why?", "grounded": False}


async def revoke(service: Service, key: store.ApiKey) -> None:
    """As the command line does, behind the service's back."""
    await store.revoke_key(service.services.database, BOOTSTRAP, key.id)


async def disable(service: Service, key: store.ApiKey) -> None:
    """As the command line does."""
    await store.put_user(service.services.database, key.user_id, disabled=True)


@pytest.mark.slow
@pytest.mark.parametrize("end", [revoke, disable])
async def test_open_streams_end_within_five_seconds(
    serve: Serve, fake: ProviderFake, end: Any
) -> None:
    """The provider is left, the row says stopped, every kind of stream of that credential ends; another's goes on."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    fake.default = Behaviour(hang_after=2)
    hers, his = await make_key(service, "alice"), await make_key(service, "bob")
    async with (
        client(service, hers) as alice,
        client(service, his) as bob,
        client(service) as browser,
    ):
        begun = (await alice.post("/ai/answers", json=ASK)).json()
        begun_by_bob = (await bob.post("/ai/answers", json=ASK)).json()
        posted = alice.stream("POST", "/ai/stream", json=ASK)
        followed = alice.stream("GET", f"/ai/answers/{begun['id']}/events")
        ticketed = browser.stream("GET", begun["events_url"])
        others = bob.stream("GET", f"/ai/answers/{begun_by_bob['id']}/events")
        async with posted as one, followed as two, ticketed as three, others as four:
            reading = [asyncio.create_task(read(response)) for response in (one, two, three)]
            other = asyncio.create_task(read(four))
            for call in await fake.wait_calls(3):
                await fake.wait_chunks(call, 2)
            began = time.monotonic()
            await end(service, hers)
            await asyncio.wait_for(asyncio.gather(*reading), 5)
            assert time.monotonic() - began < 5
            is_problem(await alice.get("/ai/logs"), 401, "unauthorized")
            assert not other.done()
            other.cancel()
        await bob.delete(f"/ai/answers/{begun_by_bob['id']}")
    rows = await rows_of(service, "alice")
    assert {row["status"] for row in rows} == {"stopped"}
    assert len(service.services.revocation) == 0
    assert service.services.quota.statistics().holds == 0


async def rows_of(service: Service, user_id: str) -> list[dict[str, Any]]:
    """The log of a user, read by an admin."""
    await service.wait_idle()
    async with client(service, await make_key(service, "root", Role.ADMIN)) as root:
        items: list[dict[str, Any]] = (
            await root.get("/ai/logs", params={"user_id": user_id})
        ).json()["items"]
        return items


async def read(response: httpx2.Response) -> list[str]:
    """The names of a stream's events, to its end, however that comes."""
    names: list[str] = []
    try:
        async with aclosing(events(response)) as stream:
            async for event in stream:
                names += [event.name]
    except httpx2.TransportError:
        names.append("cut")
    return names


@pytest.mark.slow
async def test_a_reader_whose_key_is_revoked_is_cut_off_and_the_answer_goes_on(
    serve: Serve, fake: ProviderFake
) -> None:
    """An admin who reads another's stream loses it with the key; the answer is not the admin's to end."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    held = asyncio.Event()
    fake.default = Behaviour(hold=held, hold_after=2)
    boss = await make_key(service, "root", Role.ADMIN)
    async with (
        client(service, await make_key(service, "alice")) as alice,
        client(service, boss) as root,
    ):
        begun = (await alice.post("/ai/answers", json=ASK)).json()
        async with root.stream("GET", f"/ai/answers/{begun['id']}/events") as response:
            reading = asyncio.create_task(read(response))
            await fake.wait_chunks((await fake.wait_calls(1))[0], 2)
            await revoke(service, boss)
            assert (await asyncio.wait_for(reading, 5))[-1] == "cut"
        held.set()
        async with alice.stream("GET", f"/ai/answers/{begun['id']}/events") as response:
            assert (await read(response))[-1] == "done"


async def test_a_ticket_of_a_disabled_user_opens_nothing(serve: Serve, fake: ProviderFake) -> None:
    """A ticket names its user, and a disabled one is refused, before its first use and after."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key = await make_key(service, "alice")
    async with client(service, key) as alice, client(service) as browser:
        begun = (await alice.post("/ai/answers", json=ASK)).json()
        await disable(service, key)
        service.services.authenticator.clear_cache()
        is_problem(await browser.get(begun["events_url"]), 401, "unauthorized")
        resumed = await browser.get(
            begun["events_url"], headers={"Last-Event-ID": f"{begun['id']}.0"}
        )
        is_problem(resumed, 401, "unauthorized")


def test_what_cannot_be_revoked_is_not_watched() -> None:
    """Open mode and the secret end with the process: nothing is kept for them."""
    watch = RevocationMonitor()
    for principal in (None, LOCAL, BOOTSTRAP):
        watch.watch_principal(principal, lambda: None)()
    assert len(watch) == 0
