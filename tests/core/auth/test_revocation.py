"""Revoking a credential ends the work that it started."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from service.api.log_queries import export_while_valid
from service.core.accounting.log_pages import LogFilter, export_pages
from service.core.auth import store
from service.core.auth.jwts import create_token
from service.core.auth.principals import BOOTSTRAP, LOCAL, Role
from service.core.auth.revocation import RevocationMonitor
from service.core.errors import Unauthorized
from tests.access import Clocks, bearer, client, create_credentials, make_key
from tests.conftest import Serve, Service
from tests.core.auth.test_jwts import HS
from tests.fakes.provider import Behaviour, ProviderFake
from tests.problems import is_problem
from tests.records import build_intent, build_outcome
from tests.rows import write
from tests.sse import events

ASK = {"prompt": "Why?", "grounded": False}


async def revoke_key(service: Service, key: store.ApiKey) -> None:
    """Revoke a key as the command line does, without the service's knowledge."""
    await store.revoke_key(service.services.database, BOOTSTRAP, key.id)


async def disable_user(service: Service, key: store.ApiKey) -> None:
    """Disable a user as the command line does."""
    await store.put_user(service.services.database, BOOTSTRAP, key.user_id, disabled=True)


@pytest.mark.slow
@pytest.mark.parametrize("end", [revoke_key, disable_user])
async def test_open_streams_end_within_five_seconds(
    serve: Serve, fake: ProviderFake, end: Any
) -> None:
    """Every stream of the credential ends and the provider call is cancelled; others continue."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    fake.default = Behaviour(hang_after=2)
    hers, his = await make_key(service, "alice"), await make_key(service, "bob")
    async with (
        client(service, hers) as alice,
        client(service, his) as bob,
        client(service) as browser,
    ):
        started = (await alice.post("/ai/answers", json=ASK)).json()
        started_by_bob = (await bob.post("/ai/answers", json=ASK)).json()
        posted = alice.stream("POST", "/ai/stream", json=ASK)
        followed = alice.stream("GET", f"/ai/answers/{started['id']}/events")
        ticketed = browser.stream("GET", started["events_url"])
        bobs_stream = bob.stream("GET", f"/ai/answers/{started_by_bob['id']}/events")
        async with posted as one, followed as two, ticketed as three, bobs_stream as four:
            reading = [asyncio.create_task(read_names(response)) for response in (one, two, three)]
            bobs_reader = asyncio.create_task(read_names(four))
            for call in await fake.wait_calls(3):
                await fake.wait_chunks(call, 2)
            began = time.monotonic()
            await end(service, hers)
            await asyncio.wait_for(asyncio.gather(*reading), 5)
            assert time.monotonic() - began < 5
            is_problem(await alice.get("/ai/logs"), 401, "unauthorized")
            assert not bobs_reader.done()
            bobs_reader.cancel()
        await bob.delete(f"/ai/answers/{started_by_bob['id']}")
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


async def read_names(response: httpx2.Response) -> list[str]:
    """The names of a stream's events, to its end or cut."""
    names: list[str] = []
    try:
        async with aclosing(events(response)) as stream:
            async for event in stream:
                names += [event.name]
    except httpx2.TransportError:
        names.append("cut")
    return names


@pytest.mark.slow
async def test_reader_with_a_revoked_key_is_disconnected_and_the_answer_continues(
    serve: Serve, fake: ProviderFake
) -> None:
    """An admin who reads another user's stream loses it with the key; the answer continues."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    release = asyncio.Event()
    fake.default = Behaviour(hold=release, hold_after=2)
    boss = await make_key(service, "root", Role.ADMIN)
    async with (
        client(service, await make_key(service, "alice")) as alice,
        client(service, boss) as root,
    ):
        started = (await alice.post("/ai/answers", json=ASK)).json()
        async with root.stream("GET", f"/ai/answers/{started['id']}/events") as response:
            reading = asyncio.create_task(read_names(response))
            await fake.wait_chunks((await fake.wait_calls(1))[0], 2)
            await revoke_key(service, boss)
            assert (await asyncio.wait_for(reading, 5))[-1] == "cut"
        release.set()
        async with alice.stream("GET", f"/ai/answers/{started['id']}/events") as response:
            assert (await read_names(response))[-1] == "done"


async def expire_key(service: Service, key: store.ApiKey) -> None:
    """Let a key expire, as a rotation without a grace period does."""
    await store.rotate_key(service.services.database, BOOTSTRAP, key.id, grace_seconds=0)


@pytest.mark.parametrize("invalidate", [revoke_key, disable_user, expire_key])
@pytest.mark.parametrize("redeemed", [False, True])
async def test_ticket_is_invalid_without_its_credential(
    serve: Serve, fake: ProviderFake, invalidate: Any, redeemed: bool
) -> None:
    """A ticket of a revoked or expired key, or of a disabled user, serves no reader."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key = await make_key(service, "alice")
    async with client(service, key) as alice, client(service) as browser:
        started = (await alice.post("/ai/answers", json=ASK)).json()
        headers = {}
        if redeemed:
            assert (await browser.get(started["events_url"])).status_code == 200
            headers = {"Last-Event-ID": f"{started['id']}.0"}
            assert (await browser.get(started["events_url"], headers=headers)).status_code == 200
        await invalidate(service, key)
        service.services.authenticator.clear_cache()

        response = await browser.get(started["events_url"], headers=headers)
        is_problem(response, 401, "unauthorized")


async def test_ticket_of_a_session_ends_with_it(serve: Serve, fake: ProviderFake) -> None:
    """After signing out, a ticket issued to the session is invalid, though its key is not."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key = await make_key(service, "alice")
    async with client(service, headers={"Origin": service.url}) as page, client(service) as browser:
        assert (await page.post("/auth/session", headers=bearer(key))).status_code == 200
        started = (await page.post("/ai/answers", json=ASK)).json()
        assert (await page.delete("/auth/session")).status_code == 204

        is_problem(await browser.get(started["events_url"]), 401, "unauthorized")


async def test_ticket_expires_with_its_token(serve: Serve, fake: ProviderFake) -> None:
    """A ticket issued for a JWT is invalid once the token has expired."""
    service = await serve(**HS, openai_base_url=fake.base_url, model="m")
    clock = Clocks()
    clock.now = time.time()
    service.services.authenticator._clock = clock
    token = create_token(service.services.settings, "alice", Role.USER, 60)
    async with client(service, token) as alice, client(service) as browser:
        started = (await alice.post("/ai/answers", json=ASK)).json()
        clock.now += 61

        is_problem(await browser.get(started["events_url"]), 401, "unauthorized")


async def test_readers_and_answers_end_when_their_token_expires(
    serve: Serve, fake: ProviderFake
) -> None:
    """When a JWT expires, its streams are disconnected and its answer is stopped."""
    service = await serve(**HS, openai_base_url=fake.base_url, model="m")
    fake.default = Behaviour(hang_after=2)
    clock = Clocks()
    clock.now = time.time()
    service.services.revocation._clock = clock
    short = create_token(service.services.settings, "alice", Role.USER, 60)
    longer = create_token(service.services.settings, "alice", Role.USER, 600)
    async with client(service, short) as alice, client(service, longer) as later:
        other = (await later.post("/ai/answers", json=ASK)).json()
        async with (
            alice.stream("POST", "/ai/stream", json=ASK) as posted,
            later.stream("GET", f"/ai/answers/{other['id']}/events") as followed,
        ):
            reading = asyncio.create_task(read_names(posted))
            others_reading = asyncio.create_task(read_names(followed))
            for call in await fake.wait_calls(2):
                await fake.wait_chunks(call, 2)
            clock.now += 61
            await service.services.revocation.check_principals(service.services.authenticator)
            await asyncio.wait_for(reading, 5)
            assert not others_reading.done()
            others_reading.cancel()
        await later.delete(f"/ai/answers/{other['id']}")
    assert {row["status"] for row in await rows_of(service, "alice")} == {"stopped"}


async def test_export_is_cut_off_when_its_key_is_revoked(serve: Serve) -> None:
    """An export that is still being read ends without its last rows."""
    service = await serve(auth="keys")
    rows = [build_outcome(build_intent(user_id="alice", prompt=f"{n}")) for n in range(1_200)]
    await write(service.services.database, rows)
    key = await make_key(service, "alice")
    principal = await service.services.authenticator.authenticate(create_credentials(key))
    exported = export_pages(service.services.database, LogFilter(user_id=("alice",)))
    pages = export_while_valid(service.services, principal, exported)
    async with aclosing(pages):
        assert len(await anext(pages)) == 500
        await revoke_key(service, key)
        service.services.authenticator.clear_cache()

        with pytest.raises(Unauthorized):
            await anext(pages)


def test_permanent_credentials_are_not_watched() -> None:
    """Open mode and the secret cannot be revoked, so they are not registered."""
    watch = RevocationMonitor()
    for principal in (None, LOCAL, BOOTSTRAP):
        watch.watch_principal(principal, lambda: None)()
    assert len(watch) == 0
