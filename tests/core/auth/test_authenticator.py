"""From the credential of a request to its principal: headers, expiry, caching, revocation."""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from service.core.auth import credentials, store
from service.core.auth.authenticator import (
    FRESH_SECONDS,
    REFRESH_SECONDS,
    STALE_SECONDS,
    Authenticator,
)
from service.core.auth.credentials import Credentials, hash_credential
from service.core.auth.principals import BOOTSTRAP, Principal
from service.core.database.engine import READERS, Database
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable, Unauthorized
from service.core.fair_share import current_user
from service.core.settings import Settings
from tests.access import (
    SECRET,
    Clocks,
    bearer,
    create_authenticator,
    create_credentials,
    create_key,
    make_key,
)
from tests.conftest import Serve, http_client
from tests.problems import is_problem


async def test_similar_key_is_not_cached(database: Database) -> None:
    """The cache uses the whole credential: a similar key is unknown."""
    key, verifies = await create_key(database), create_authenticator(database)
    assert (await verifies.authenticate(create_credentials(key))).user_id == "alice"
    text = str(key.key)
    for changed in (
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text[:-1],
        text + "A",
        text.swapcase(),
    ):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(create_credentials(changed))


@pytest.mark.parametrize(
    "text",
    [
        "' OR '1'='1",
        "\0",
        "’ OR ’1’=’1",
        "kt_" + "é" * 43,
        "x" * 1_000_000,
        "kt_" + "A" * 43,
        "\udcff",
    ],
)
async def test_malformed_credentials_are_refused(database: Database, text: str) -> None:
    """Malformed keys are refused without a database query, well-formed ones are found by hash."""
    verifies = create_authenticator(database)
    statements: list[Any] = []
    sa.event.listen(
        database._reader.sync_engine,
        "before_cursor_execute",
        lambda *a: statements.append((a[2], a[3])),
    )
    with pytest.raises(Unauthorized):
        await verifies.authenticate(create_credentials(text))
    with pytest.raises(Unauthorized):
        await verifies.authenticate(Credentials(api_key=[text]))

    queries = [(sql, parameters) for sql, parameters in statements if "api_keys" in sql]
    assert len(queries) == (2 if text == "kt_" + "A" * 43 else 0)
    assert all(
        hash_credential(text) in parameters and hash_credential(text) not in sql
        for sql, parameters in queries
    )


async def test_all_headers_are_equivalent(database: Database) -> None:
    """Bearer, X-API-Key and Basic are equivalent; two different credentials are refused."""
    key, other, verifies = (
        await create_key(database),
        await create_key(database, "bob"),
        create_authenticator(database),
    )
    text = str(key.key)
    for headers in (
        Credentials(authorization=[f"Bearer {text}"]),
        Credentials(authorization=[f"bearer  {text} "]),
        Credentials(api_key=[text]),
        Credentials(authorization=[f"Bearer {text}"], api_key=[text]),
        Credentials(authorization=[httpx2.BasicAuth("anyone", text)._auth_header]),
    ):
        assert (await verifies.authenticate(headers)).user_id == "alice"
    for headers in (
        Credentials(authorization=[f"Bearer {text}"], api_key=[str(other.key)]),
        Credentials(authorization=[f"Bearer {text}", f"Bearer {other.key}"]),
        Credentials(authorization=["Bearer"], api_key=[text]),
        Credentials(authorization=[f"Digest {text}"]),
        Credentials(api_key=[""], session="ks_x"),
    ):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(headers)


async def test_expired_key_is_refused_despite_the_cache(database: Database) -> None:
    """A cached key is refused one second after its expiry."""
    clocks = Clocks()
    clocks.now = utc_now().timestamp()
    end = utc_now() + timedelta(hours=1)
    key, verifies = (
        await create_key(database, expires_at=end),
        create_authenticator(database, clocks),
    )
    clocks.now = end.timestamp() - 1
    await verifies.authenticate(create_credentials(key))
    clocks.now = end.timestamp() + 1
    with pytest.raises(Unauthorized):
        await verifies.authenticate(create_credentials(key))


async def test_revocation_by_another_process_takes_effect(
    database: Database,
) -> None:
    """A key revoked, or a user disabled, by another process is refused after `FRESH_SECONDS`."""
    clocks = Clocks()
    revoked, disabled, verifies = (
        await create_key(database),
        await create_key(database, "bob"),
        create_authenticator(database, clocks),
    )
    for key in (revoked, disabled):
        await verifies.authenticate(create_credentials(key))
    await store.revoke_key(database, BOOTSTRAP, revoked.id)
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    assert FRESH_SECONDS < 5
    clocks.now += FRESH_SECONDS + 0.1
    for key in (revoked, disabled):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(create_credentials(key))
    await store.put_user(database, BOOTSTRAP, "bob", disabled=False)
    assert (await verifies.authenticate(create_credentials(disabled))).user_id == "bob"
    await store.put_user(database, BOOTSTRAP, "bob", disabled=True)
    verifies.clear_cache()
    with pytest.raises(Unauthorized):
        await verifies.authenticate(create_credentials(disabled))


async def test_concurrent_requests_share_one_lookup(database: Database) -> None:
    """A hundred concurrent requests with an uncached key cost one lookup."""
    key, verifies = await create_key(database), create_authenticator(database)
    looks: list[str] = []
    sa.event.listen(
        database._reader.sync_engine, "before_cursor_execute", lambda *a: looks.append(a[2])
    )
    coming = [
        asyncio.create_task(verifies.authenticate(create_credentials(key))) for _ in range(100)
    ]
    wrong = [
        asyncio.create_task(verifies.authenticate(create_credentials("kt_" + "A" * 43)))
        for _ in range(100)
    ]
    await asyncio.sleep(0)
    coming[0].cancel()
    results = await asyncio.gather(*coming, *wrong, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert {result.user_id for result in results[1:100] if isinstance(result, Principal)} == {
        "alice"
    }
    assert all(isinstance(result, Unauthorized) for result in results[100:])
    assert len([sql for sql in looks if "api_keys" in sql]) == 2
    assert not verifies._pending_lookups


async def test_lookup_is_not_shared_across_a_change(
    database: Database,
) -> None:
    """A lookup started before a change serves only the callers before it."""
    key, verifies = await create_key(database), create_authenticator(database)
    before = asyncio.create_task(verifies.authenticate(create_credentials(key)))
    await asyncio.sleep(0)
    verifies.clear_cache()
    after = asyncio.create_task(verifies.authenticate(create_credentials(key)))
    await asyncio.sleep(0)

    assert len(verifies._pending_lookups) == 2
    assert {(await before).user_id, (await after).user_id} == {"alice"}


async def test_cached_credentials_survive_a_database_outage(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the database a cached credential is valid for `STALE_SECONDS`, others are 503."""
    clocks = Clocks()
    key, other, verifies = (
        await create_key(database),
        await create_key(database),
        create_authenticator(database, clocks),
    )
    await verifies.authenticate(create_credentials(key))

    def away() -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(database, "read_session", away)
    clocks.now += STALE_SECONDS - 1
    assert (await verifies.authenticate(create_credentials(key))).user_id == "alice"
    with pytest.raises(DatabaseUnavailable):
        await verifies.authenticate(create_credentials(other))
    clocks.now += 2
    with pytest.raises(DatabaseUnavailable):
        await verifies.authenticate(create_credentials(key))


async def test_a_hanging_database_does_not_delay_known_credentials(database: Database) -> None:
    """The first request waits for a limited time, the next ones for none; unknown ones wait."""
    key, clocks = await create_key(database), Clocks()
    other = await create_key(database, user_id="bob")
    verifies = create_authenticator(database, clocks)
    for known in (key, other):
        await verifies.authenticate(create_credentials(known))
    clocks.now += FRESH_SECONDS + 1
    async with AsyncExitStack() as stack:
        for _ in range(READERS):  # every connection is in use
            await stack.enter_async_context(database.read_session())
        first = await verifies.authenticate(create_credentials(key))
        clocks.now += REFRESH_SECONDS * 2
        begun = time.monotonic()
        second = await verifies.authenticate(create_credentials(other))
        elapsed = time.monotonic() - begun

    assert (first.user_id, second.user_id) == ("alice", "bob")
    assert elapsed < REFRESH_SECONDS


async def test_credential_cache_is_bounded(database: Database) -> None:
    """The cache keeps the newest credentials up to its maximum, and no invalid ones."""
    verifies = Authenticator(Settings(auth="keys"), database, cache_max=3)
    for _ in range(5):
        await verifies.authenticate(create_credentials(await create_key(database)))
        with pytest.raises(Unauthorized):
            await verifies.authenticate(create_credentials(credentials.generate_key()))
    assert len(verifies) == 3


async def test_last_uses_are_written_together(database: Database) -> None:
    """Last uses are written by the reaper in one transaction."""
    keys, verifies = [await create_key(database) for _ in range(3)], create_authenticator(database)
    for key in keys * 20:
        await verifies.authenticate(create_credentials(key))
    async with database.read_session() as session:
        assert [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)] == [None] * 3
    await verifies.write_last_used()
    async with database.read_session() as session:
        assert None not in [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)]


async def test_secret_is_an_admin_credential(serve: Serve) -> None:
    """KOTAE_SECRET is an admin's credential beside keys."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    key = await make_key(service, "alice")
    for credential in (SECRET, key.key):
        async with http_client(service.url, headers=bearer(str(credential))) as caller:
            assert (await caller.get("/ai/logs")).status_code == 200
    async with http_client(service.url, headers=bearer(SECRET[:-1] + "g")) as stranger:
        is_problem(await stranger.get("/ai/logs"), 401, "unauthorized")


async def test_malformed_host_bypasses_no_credential_check(serve: Serve) -> None:
    """A Host header that changes the meaning of a URL bypasses no credential check."""
    service = await serve(auth="keys")
    for host in ("x/?", "x#", "x/health/live?", "localhost/health/live?", "a b"):
        for path in ("/ai/logs", "/ai/documents", "/metrics"):
            async with http_client(service.url) as stranger:
                assert (await stranger.get(path, headers={"Host": host})).status_code in {400, 401}


async def test_lookups_take_turns_with_users(database: Database) -> None:
    """A credential is not looked up behind all reads of one user."""
    key, verifies = await create_key(database), create_authenticator(database)
    order: list[str] = []

    async def read() -> None:
        current_user.set("busy")
        async with database.read_session() as session:
            await session.execute(sa.text("SELECT 1"))
            order.append("read")

    async def authenticate() -> None:
        await verifies.authenticate(Credentials(api_key=[str(key.key)]))
        order.append("authenticated")

    await asyncio.gather(*(read() for _ in range(40)), authenticate())

    assert order.index("authenticated") < 20, order
