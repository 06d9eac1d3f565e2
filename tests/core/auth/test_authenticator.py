"""From the credential of a request to its principal: headers, expiry, caching, revocation."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from service.core.auth import credentials, store
from service.core.auth.authenticator import FRESH_SECONDS, STALE_SECONDS, Authenticator
from service.core.auth.credentials import Credentials, hash_credential
from service.core.auth.principals import BOOTSTRAP, Principal
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import DatabaseUnavailable, Unauthorized
from service.core.settings import Settings
from tests.access import SECRET, Clocks, bearer, carrying, door, made, make_key
from tests.conftest import Serve, http_client
from tests.problems import is_problem


async def test_a_key_equal_but_for_its_last_character_is_another(database: Database) -> None:
    """The cache is keyed by the whole credential: a neighbour of a known key is unknown."""
    key, verifies = await made(database), door(database)
    assert (await verifies.authenticate(carrying(key))).user_id == "alice"
    text = str(key.key)
    for other in (
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text[:-1],
        text + "A",
        text.swapcase(),
    ):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(carrying(other))


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
async def test_strange_bearers_are_no_credentials(database: Database, text: str) -> None:
    """What is not a key is refused without a question to the database; what only looks like one, by its hash."""
    verifies = door(database)
    statements: list[Any] = []
    sa.event.listen(
        database._reader.sync_engine,
        "before_cursor_execute",
        lambda *a: statements.append((a[2], a[3])),
    )
    with pytest.raises(Unauthorized):
        await verifies.authenticate(carrying(text))
    with pytest.raises(Unauthorized):
        await verifies.authenticate(Credentials(api_key=[text]))

    asked = [(sql, parameters) for sql, parameters in statements if "api_keys" in sql]
    assert len(asked) == (2 if text == "kt_" + "A" * 43 else 0)
    assert all(
        hash_credential(text) in parameters and hash_credential(text) not in sql
        for sql, parameters in asked
    )


async def test_every_header_gives_the_same_decision(database: Database) -> None:
    """Bearer, X-API-Key and Basic are one; two that differ are refused, two that agree are not."""
    key, other, verifies = await made(database), await made(database, "bob"), door(database)
    text = str(key.key)
    for given in (
        Credentials(authorization=[f"Bearer {text}"]),
        Credentials(authorization=[f"bearer  {text} "]),
        Credentials(api_key=[text]),
        Credentials(authorization=[f"Bearer {text}"], api_key=[text]),
        Credentials(authorization=[httpx2.BasicAuth("anyone", text)._auth_header]),
    ):
        assert (await verifies.authenticate(given)).user_id == "alice"
    for given in (
        Credentials(authorization=[f"Bearer {text}"], api_key=[str(other.key)]),
        Credentials(authorization=[f"Bearer {text}", f"Bearer {other.key}"]),
        Credentials(authorization=["Bearer"], api_key=[text]),
        Credentials(authorization=[f"Digest {text}"]),
        Credentials(api_key=[""], session="ks_x"),
    ):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(given)


async def test_an_end_is_an_end_to_the_second(database: Database) -> None:
    """A key is good until its end and not a second longer, however warm the cache."""
    clocks = Clocks()
    clocks.now = utc_now().timestamp()
    end = utc_now() + timedelta(hours=1)
    key, verifies = await made(database, expires_at=end), door(database, clocks)
    clocks.now = end.timestamp() - 1
    await verifies.authenticate(carrying(key))
    clocks.now = end.timestamp() + 1
    with pytest.raises(Unauthorized):
        await verifies.authenticate(carrying(key))


async def test_what_another_process_ends_is_refused_when_it_is_asked_again(
    database: Database,
) -> None:
    """A key revoked, or a user disabled, in the database is refused after `FRESH_SECONDS`; here at once, if forgotten."""
    clocks = Clocks()
    revoked, disabled, verifies = (
        await made(database),
        await made(database, "bob"),
        door(database, clocks),
    )
    for key in (revoked, disabled):
        await verifies.authenticate(carrying(key))
    await store.revoke_key(database, BOOTSTRAP, revoked.id)
    await store.put_user(database, "bob", disabled=True)
    assert FRESH_SECONDS < 5
    clocks.now += FRESH_SECONDS + 0.1
    for key in (revoked, disabled):
        with pytest.raises(Unauthorized):
            await verifies.authenticate(carrying(key))
    await store.put_user(database, "bob", disabled=False)
    assert (await verifies.authenticate(carrying(disabled))).user_id == "bob"
    await store.put_user(database, "bob", disabled=True)
    verifies.clear_cache()
    with pytest.raises(Unauthorized):
        await verifies.authenticate(carrying(disabled))


async def test_the_database_is_asked_once_for_all_who_come_at_once(database: Database) -> None:
    """A hundred requests with one key that is not known cost one look; one that leaves takes nobody with it, a wrong key fools none."""
    key, verifies = await made(database), door(database)
    looks: list[str] = []
    sa.event.listen(
        database._reader.sync_engine, "before_cursor_execute", lambda *a: looks.append(a[2])
    )
    coming = [asyncio.create_task(verifies.authenticate(carrying(key))) for _ in range(100)]
    wrong = [
        asyncio.create_task(verifies.authenticate(carrying("kt_" + "A" * 43))) for _ in range(100)
    ]
    await asyncio.sleep(0)
    coming[0].cancel()
    found = await asyncio.gather(*coming, *wrong, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.user_id for one in found[1:100] if isinstance(one, Principal)} == {"alice"}
    assert all(isinstance(one, Unauthorized) for one in found[100:])
    assert len([sql for sql in looks if "api_keys" in sql]) == 2
    assert not verifies._asked


async def test_who_comes_after_a_change_does_not_share_the_look_before_it(
    database: Database,
) -> None:
    """A look that was under way when something changed serves those who asked before it; who asks after it gets a look anew."""
    key, verifies = await made(database), door(database)
    before = asyncio.create_task(verifies.authenticate(carrying(key)))
    await asyncio.sleep(0)
    verifies.clear_cache()
    after = asyncio.create_task(verifies.authenticate(carrying(key)))
    await asyncio.sleep(0)

    assert len(verifies._asked) == 2
    assert {(await before).user_id, (await after).user_id} == {"alice"}


async def test_without_the_database_the_known_stay_known_for_a_while(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential that was valid is believed for `STALE_SECONDS`; an unknown one is 503, never let in."""
    clocks = Clocks()
    key, other, verifies = await made(database), await made(database), door(database, clocks)
    await verifies.authenticate(carrying(key))

    def away() -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(database, "read_session", away)
    clocks.now += STALE_SECONDS - 1
    assert (await verifies.authenticate(carrying(key))).user_id == "alice"
    with pytest.raises(DatabaseUnavailable):
        await verifies.authenticate(carrying(other))
    clocks.now += 2
    with pytest.raises(DatabaseUnavailable):
        await verifies.authenticate(carrying(key))


async def test_the_credential_cache_is_bounded(database: Database) -> None:
    """The cache keeps the newest credentials up to its maximum, and no invalid ones."""
    verifies = Authenticator(Settings(auth="keys"), database, cache_max=3)
    for _ in range(5):
        await verifies.authenticate(carrying(await made(database)))
        with pytest.raises(Unauthorized):
            await verifies.authenticate(carrying(credentials.generate_key()))
    assert len(verifies) == 3


async def test_last_uses_are_written_together(database: Database) -> None:
    """A use costs no write; the reaper writes all of them in one transaction."""
    keys, verifies = [await made(database) for _ in range(3)], door(database)
    for key in keys * 20:
        await verifies.authenticate(carrying(key))
    async with database.read_session() as session:
        assert [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)] == [None] * 3
    await verifies.write_last_used()
    async with database.read_session() as session:
        assert None not in [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)]


async def test_the_secret_is_an_admin_s_credential_beside_keys(serve: Serve) -> None:
    """KOTAE_SECRET stays what it was; nothing of it is in the database."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    key = await make_key(service, "alice")
    for credential in (SECRET, key.key):
        async with http_client(service.url, headers=bearer(str(credential))) as caller:
            assert (await caller.get("/ai/logs")).status_code == 200
    async with http_client(service.url, headers=bearer(SECRET[:-1] + "g")) as stranger:
        is_problem(await stranger.get("/ai/logs"), 401, "unauthorized")


async def test_strange_hosts_reach_no_route_around_its_credential(serve: Serve) -> None:
    """A Host header that would change what a URL means never gets past who may."""
    service = await serve(auth="keys")
    for host in ("x/?", "x#", "x/health/live?", "localhost/health/live?", "a b"):
        for path in ("/ai/logs", "/ai/documents", "/metrics"):
            async with http_client(service.url) as stranger:
                assert (await stranger.get(path, headers={"Host": host})).status_code in {400, 401}
