"""Keys: made, shown once, checked in full, ended."""

import ast
import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx2
import pytest
import sqlalchemy as sa
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from pydantic import SecretStr
from typer.testing import CliRunner

from service.cli.app import app
from service.core.auth import credentials, store
from service.core.auth.authenticator import CACHE_MAX, FRESH_SECONDS, STALE_SECONDS, Door
from service.core.auth.credentials import Given, digest
from service.core.auth.principals import BOOTSTRAP, EVERYTHING, Principal, Role, Scope
from service.core.auth.store import ApiKey, Wanted
from service.core.database.engine import Database
from service.core.database.tables import api_keys
from service.core.encoding import now
from service.core.errors import DatabaseUnavailable, Forbidden, KeysFull, NotFound, Unauthorized
from service.core.settings import Settings
from tests.access import bearer, client, make_key
from tests.api.test_middleware import SECRET, is_problem
from tests.conftest import Serve

SERVICE = Path(__file__).parents[3] / "service"


class Clocks:
    """Both clocks of a door, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def made(database: Database, user_id: str = "alice", by: Principal = BOOTSTRAP, **wanted: Any) -> ApiKey:
    """A key, made."""
    return await store.create_key(database, by, Wanted(user_id=user_id, **wanted), keys_max=100)


def door(database: Database, clocks: Clocks | None = None, **settings: Any) -> Door:
    """A door with clocks that stand still."""
    clocks = clocks or Clocks()
    return Door(Settings(auth="keys", **settings), database, monotonic=clocks, clock=clocks)


def carrying(key: ApiKey | str) -> Given:
    """What a request with this key carries."""
    return Given(authorization=[f"Bearer {key.key if isinstance(key, ApiKey) else key}"])


async def test_a_key_is_shown_once_and_kept_as_a_hash(database: Database) -> None:
    """The database has SHA-256 and a prefix, no list has the key, and the hash is no credential."""
    key = await made(database)
    assert re.fullmatch(r"kt_[A-Za-z0-9_-]{43}", str(key.key))
    async with database.reading() as session:
        row = (await session.execute(sa.select(api_keys))).mappings().one()
        (listed,) = await store.list_keys(session, BOOTSTRAP)

    assert row["hash"] == digest(str(key.key))
    assert str(key.key) not in str(dict(row))
    assert not isinstance(listed.key, str)
    assert not any("hash" in name for name in ApiKey.__struct_fields__)
    with pytest.raises(Unauthorized):
        await door(database).admit(carrying(row["hash"]))


async def test_a_key_equal_but_for_its_last_character_is_another(database: Database) -> None:
    """The cache is keyed by the whole credential: a neighbour of a known key is unknown."""
    key, verifies = await made(database), door(database)
    assert (await verifies.admit(carrying(key))).user_id == "alice"
    text = str(key.key)
    for other in (text[:-1] + ("A" if text[-1] != "A" else "B"), text[:-1], text + "A", text.swapcase()):
        with pytest.raises(Unauthorized):
            await verifies.admit(carrying(other))


@hypothesis_given(st.text(max_size=60), st.text(max_size=60))
def test_the_cache_s_key_is_the_full_hash(one: str, other: str) -> None:
    """Two credentials have one cache key only if they are the same."""
    assert (digest(one) == digest(other)) == (one == other)


@pytest.mark.parametrize("text", ["' OR '1'='1", "\0", "’ OR ’1’=’1", "kt_" + "é" * 43, "x" * 1_000_000, "kt_" + "A" * 43, "\udcff"])
async def test_strange_bearers_are_no_credentials(database: Database, text: str) -> None:
    """What is not a key is refused without a question to the database; what only looks like one, by its hash."""
    verifies = door(database)
    statements: list[Any] = []
    sa.event.listen(database._reader.sync_engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    with pytest.raises(Unauthorized):
        await verifies.admit(carrying(text))
    with pytest.raises(Unauthorized):
        await verifies.admit(Given(api_key=[text]))

    asked = [(sql, parameters) for sql, parameters in statements if "api_keys" in sql]
    assert len(asked) == (2 if text == "kt_" + "A" * 43 else 0)
    assert all(digest(text) in parameters and digest(text) not in sql for sql, parameters in asked)


async def test_every_header_gives_the_same_decision(database: Database) -> None:
    """Bearer, X-API-Key and Basic are one; two that differ are refused, two that agree are not."""
    key, other, verifies = await made(database), await made(database, "bob"), door(database)
    text = str(key.key)
    for given in (
        Given(authorization=[f"Bearer {text}"]),
        Given(authorization=[f"bearer  {text} "]),
        Given(api_key=[text]),
        Given(authorization=[f"Bearer {text}"], api_key=[text]),
        Given(authorization=[httpx2.BasicAuth("anyone", text)._auth_header]),
    ):
        assert (await verifies.admit(given)).user_id == "alice"
    for given in (
        Given(authorization=[f"Bearer {text}"], api_key=[str(other.key)]),
        Given(authorization=[f"Bearer {text}", f"Bearer {other.key}"]),
        Given(authorization=["Bearer"], api_key=[text]),
        Given(authorization=[f"Digest {text}"]),
        Given(api_key=[""], session="ks_x"),
    ):
        with pytest.raises(Unauthorized):
            await verifies.admit(given)


async def test_an_end_is_an_end_to_the_second(database: Database) -> None:
    """A key is good until its end and not a second longer, however warm the cache."""
    clocks = Clocks()
    clocks.now = now().timestamp()
    end = now() + timedelta(hours=1)
    key, verifies = await made(database, expires_at=end), door(database, clocks)
    clocks.now = end.timestamp() - 1
    await verifies.admit(carrying(key))
    clocks.now = end.timestamp() + 1
    with pytest.raises(Unauthorized):
        await verifies.admit(carrying(key))


async def test_what_another_process_ends_is_refused_when_it_is_asked_again(database: Database) -> None:
    """A key revoked, or a user disabled, in the database is refused after `FRESH_SECONDS`; here at once, if forgotten."""
    clocks = Clocks()
    revoked, disabled, verifies = await made(database), await made(database, "bob"), door(database, clocks)
    for key in (revoked, disabled):
        await verifies.admit(carrying(key))
    await store.revoke_key(database, BOOTSTRAP, revoked.id)
    await store.put_user(database, "bob", disabled=True)
    assert FRESH_SECONDS < 5
    clocks.now += FRESH_SECONDS + 0.1
    for key in (revoked, disabled):
        with pytest.raises(Unauthorized):
            await verifies.admit(carrying(key))
    await store.put_user(database, "bob", disabled=False)
    assert (await verifies.admit(carrying(disabled))).user_id == "bob"
    await store.put_user(database, "bob", disabled=True)
    verifies.forget()
    with pytest.raises(Unauthorized):
        await verifies.admit(carrying(disabled))


async def test_the_database_is_asked_once_for_all_who_come_at_once(database: Database) -> None:
    """A hundred requests with one key that is not known cost one look; one that leaves takes nobody with it, a wrong key fools none."""
    key, verifies = await made(database), door(database)
    looks: list[str] = []
    sa.event.listen(database._reader.sync_engine, "before_cursor_execute", lambda *a: looks.append(a[2]))
    coming = [asyncio.create_task(verifies.admit(carrying(key))) for _ in range(100)]
    wrong = [asyncio.create_task(verifies.admit(carrying("kt_" + "A" * 43))) for _ in range(100)]
    await asyncio.sleep(0)
    coming[0].cancel()
    found = await asyncio.gather(*coming, *wrong, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.user_id for one in found[1:100] if isinstance(one, Principal)} == {"alice"}
    assert all(isinstance(one, Unauthorized) for one in found[100:])
    assert len([sql for sql in looks if "api_keys" in sql]) == 2
    assert not verifies._asked


async def test_who_comes_after_a_change_does_not_share_the_look_before_it(database: Database) -> None:
    """A look that was under way when something changed serves those who asked before it; who asks after it gets a look anew."""
    key, verifies = await made(database), door(database)
    before = asyncio.create_task(verifies.admit(carrying(key)))
    await asyncio.sleep(0)
    verifies.forget()
    after = asyncio.create_task(verifies.admit(carrying(key)))
    await asyncio.sleep(0)

    assert len(verifies._asked) == 2
    assert {(await before).user_id, (await after).user_id} == {"alice"}


async def test_without_the_database_the_known_stay_known_for_a_while(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential that was valid is believed for `STALE_SECONDS`; an unknown one is 503, never let in."""
    clocks = Clocks()
    key, other, verifies = await made(database), await made(database), door(database, clocks)
    await verifies.admit(carrying(key))

    def away() -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(database, "reading", away)
    clocks.now += STALE_SECONDS - 1
    assert (await verifies.admit(carrying(key))).user_id == "alice"
    with pytest.raises(DatabaseUnavailable):
        await verifies.admit(carrying(other))
    clocks.now += 2
    with pytest.raises(DatabaseUnavailable):
        await verifies.admit(carrying(key))


async def test_what_is_known_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many credentials come, the cache keeps the newest; unknown ones are not kept at all."""
    monkeypatch.setattr("service.core.auth.authenticator.CACHE_MAX", 3)
    assert CACHE_MAX <= 10_000
    verifies = door(database)
    for _ in range(5):
        await verifies.admit(carrying(await made(database)))
        with pytest.raises(Unauthorized):
            await verifies.admit(carrying(credentials.new_key()))
    assert len(verifies) == 3


SCOPES = st.frozensets(st.sampled_from(list(Scope)))


@hypothesis_given(SCOPES, SCOPES, st.sampled_from(list(Role)), st.sampled_from(list(Role)), st.booleans())
def test_a_key_has_no_more_than_its_maker(mine: frozenset[Scope], child: frozenset[Scope], role: Role, of: Role, own: bool) -> None:
    """Scopes of a child are a part of its maker's; users make keys of users, and of themselves alone."""
    by = Principal(user_id="alice", role=role, scopes=mine, credential="key:1")
    wanted = Wanted(user_id="alice" if own else "bob", role=of, scopes=child)
    fits = child <= mine and (role is Role.ADMIN or (own and of is Role.USER))
    try:
        store._check_child(by, wanted)
    except Forbidden:
        assert not fits
    else:
        assert fits


async def test_a_key_with_an_end_makes_none_without(database: Database) -> None:
    """A key does not outlive its maker."""
    by = Principal(user_id="alice", role=Role.USER, credential="key:1", ends_at=(now() + timedelta(days=1)).timestamp())
    for end in (None, now() + timedelta(days=2)):
        with pytest.raises(Forbidden):
            await made(database, by=by, expires_at=end)
    assert (await made(database, by=by, expires_at=now() + timedelta(hours=1))).user_id == "alice"


async def test_keys_have_a_limit(database: Database) -> None:
    """One more than KOTAE_KEYS_MAX is a refusal; revoked and expired ones do not count."""
    keys = [await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3) for _ in range(3)]
    with pytest.raises(KeysFull):
        await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3)
    await store.revoke_key(database, BOOTSTRAP, keys[0].id)
    await store.create_key(database, BOOTSTRAP, Wanted(user_id="a"), keys_max=3)


async def test_keys_through_the_routes(serve: Serve) -> None:
    """A user makes, lists, rotates and revokes keys of their own; a revoked one is refused at once."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    first = (await service.client.post("/ai/keys", json={"user_id": "alice", "name": "laptop", "expires_in_days": 30})).json()
    end = first["expires_at"]
    async with client(service, first["key"]) as alice:
        is_problem(await alice.post("/ai/keys", json={"role": "admin"}), 403, "forbidden")
        is_problem(await alice.post("/ai/keys", json={"user_id": "bob"}), 403, "forbidden")
        narrow = (await alice.post("/ai/keys", json={"scopes": ["logs"], "expires_at": end})).json()
        rotated = (await alice.post(f"/ai/keys/{narrow['id']}/rotate", json={"grace_seconds": 0})).json()
        listed = (await alice.get("/ai/keys")).json()["items"]
        async with client(service, narrow["key"]) as old, client(service, rotated["key"]) as new:
            is_problem(await old.get("/ai/logs"), 401, "unauthorized")
            assert (await new.get("/ai/logs")).status_code == 200
            is_problem(await new.get("/ai/keys"), 403, "forbidden")
            assert (await alice.delete(f"/ai/keys/{rotated['id']}")).status_code == 204
            is_problem(await new.get("/ai/logs"), 401, "unauthorized")

    assert [item["name"] for item in listed] == ["", "", "laptop"]
    assert all("key" not in item and item["prefix"].startswith("kt_") for item in listed)


async def test_a_rotated_key_lives_on_for_its_grace(database: Database) -> None:
    """Both keys work until the grace is over."""
    clocks = Clocks()
    clocks.now = now().timestamp()
    old, verifies = await made(database), door(database, clocks)
    new = await store.rotate_key(database, BOOTSTRAP, old.id, grace_seconds=60, keys_max=1)
    for key in (old, new):
        await verifies.admit(carrying(key))
    clocks.now += 61
    await verifies.admit(carrying(new))
    with pytest.raises(Unauthorized):
        await verifies.admit(carrying(old))


async def test_last_uses_are_written_together(database: Database) -> None:
    """A use costs no write; the reaper writes all of them in one transaction."""
    keys, verifies = [await made(database) for _ in range(3)], door(database)
    for key in keys * 20:
        await verifies.admit(carrying(key))
    async with database.reading() as session:
        assert [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)] == [None] * 3
    await verifies.write_used()
    async with database.reading() as session:
        assert None not in [key.last_used_at for key in await store.list_keys(session, BOOTSTRAP)]


async def test_the_secret_is_an_admin_s_credential_beside_keys(serve: Serve) -> None:
    """KOTAE_SECRET stays what it was; nothing of it is in the database."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    key = await make_key(service, "alice")
    for credential in (SECRET, key.key):
        async with httpx2.AsyncClient(base_url=service.url, headers=bearer(str(credential))) as caller:
            assert (await caller.get("/ai/logs")).status_code == 200
    async with httpx2.AsyncClient(base_url=service.url, headers=bearer(SECRET[:-1] + "g")) as stranger:
        is_problem(await stranger.get("/ai/logs"), 401, "unauthorized")


async def test_strange_hosts_reach_no_route_around_its_credential(serve: Serve) -> None:
    """A Host header that would change what a URL means never gets past who may."""
    service = await serve(auth="keys")
    for host in ("x/?", "x#", "x/health/live?", "localhost/health/live?", "a b"):
        for path in ("/ai/logs", "/ai/documents", "/metrics"):
            async with httpx2.AsyncClient(base_url=service.url) as stranger:
                assert (await stranger.get(path, headers={"Host": host})).status_code in {400, 401}


async def test_keys_on_the_command_line(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kotae keys create`, list, rotate, revoke and `users disable` work on the database; a running service notices."""
    service = await serve(auth="keys")
    monkeypatch.setenv("KOTAE_DATA_DIR", str(service.rooms.settings.data_dir))
    created = await command("keys", "create", "--user", "alice", "--scopes", "logs", "--expires", "1")
    key, key_id = created.split()[0], created.splitlines()[1].split()[0]
    async with client(service, key) as alice:
        assert (await alice.get("/ai/logs")).status_code == 200
        assert (await alice.get("/ai/keys")).status_code == 403
        listed = await command("keys", "list")
        rotated = (await command("keys", "rotate", key_id)).split()[0]
        async with client(service, rotated) as renewed:
            assert (await renewed.get("/ai/logs")).status_code == 200
            await command("keys", "revoke", key_id)
            await refused(alice)
            await command("users", "disable", "alice")
            await refused(renewed)
    assert "alice  disabled" in await command("users", "list")
    with pytest.raises(NotFound):
        await command("keys", "revoke", "nothing")

    assert key not in listed
    assert f"{key_id}  {key[:10]}…  alice  user  logs  valid" in listed


async def refused(caller: httpx2.AsyncClient) -> None:
    """Until a credential is refused, which takes no longer than five seconds."""
    async with asyncio.timeout(5):
        while (await caller.get("/ai/logs")).status_code == 200:
            await asyncio.sleep(0.1)


async def command(*arguments: str) -> str:
    """What a command prints."""
    done = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments))
    if done.exception:
        raise done.exception
    return done.output


def test_no_secret_is_compared_character_by_character() -> None:
    """Credentials are found by hash and compared by `hmac.compare_digest`; no `==` stands beside a hash or a secret."""
    compared = 0
    for file in (SERVICE / "core" / "auth").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                secret = any(re.search(r"(hash|hashed|secret|credential|value)$", side) and ".c." not in side for side in sides)
                in_database = any(".c." in side for side in sides)
                assert not secret or in_database or any(isinstance(side, ast.Constant) for side in node.comparators), ast.unparse(node)
            compared += isinstance(node, ast.Attribute) and node.attr == "compare_digest"
    assert compared >= 3


def test_no_statement_is_made_of_values() -> None:
    """No SQL text is an f-string, and none is formatted with what came from outside."""
    for file in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"text", "exec_driver_sql"}:
                assert not any(isinstance(sql, ast.JoinedStr | ast.BinOp) for sql in node.args[:1]), f"{file.name}:{node.lineno}"


def test_everything_is_everything() -> None:
    """The scopes of a key that names none are all there are."""
    assert frozenset(Scope) == EVERYTHING
