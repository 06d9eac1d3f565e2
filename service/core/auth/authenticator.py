"""The door: the one place where a credential becomes a `Principal`.

A credential is verified once and then known for `FRESH_SECONDS`, by its full SHA-256; after that the database is asked
again, so that what another process has revoked is refused here soon. What this process revokes it forgets at once. The
end of a credential is looked at every time. The cache is bounded; the least recently verified entry is evicted. However many
requests come with a credential that is not known, the database is asked once for all of them.

Failure policy: closed. When the database cannot be read, a credential that was valid stays so for `STALE_SECONDS`
(nobody can revoke anything meanwhile), any other is refused with 503.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
from cachetools import FIFOCache

from service.core.auth import store
from service.core.auth.credentials import (
    Credentials,
    hash_credential,
    is_key,
    is_session,
    parse_explicit,
)
from service.core.auth.jwts import JwtVerifier
from service.core.auth.principals import BOOTSTRAP, LOCAL, Principal, Role, Scope
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, JwksUnavailable, Unauthorized
from service.core.ports import QuotaLimits
from service.core.settings import Settings
from service.core.telemetry import log

FRESH_SECONDS = 3.0
STALE_SECONDS = 300.0
CACHE_MAX = 10_000  # credentials, and as many users
USED_MAX = 10_000  # keys whose last use is not yet written
T = TypeVar("T")
_KEY = "key"  # the kind of credential that `Principal.credential` and `sessions.origin` name with the key's id
_WRONG = "the credential is not valid here: it is wrong, expired or revoked"
_MISSING = "send an API key as bearer token, in X-API-Key, or as the password of HTTP Basic"


class _CachedPrincipal(msgspec.Struct):
    principal: Principal
    verified_at: float  # of the monotonic clock


class _CachedUser(msgspec.Struct, frozen=True):
    limits: QuotaLimits | None
    disabled: bool
    read_at: float  # of the monotonic clock


class Authenticator:
    """Verifies credentials. One per process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        jwts: JwtVerifier | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        cache_max: int = CACHE_MAX,
    ) -> None:
        self._open = settings.auth == "open"
        self._secret_hash = (
            hash_credential(settings.secret.get_secret_value()) if settings.secret else None
        )
        self._database = database
        self._jwts = jwts
        self._monotonic, self._clock = monotonic, clock
        self._known: FIFOCache[str, _CachedPrincipal] = FIFOCache(cache_max)
        self._users: FIFOCache[str, _CachedUser] = FIFOCache(cache_max)
        self._used: dict[str, datetime] = {}
        self._asked: dict[
            tuple[str, str, int], asyncio.Task[Any]
        ] = {}  # the looks into the database that are under way
        self._generation = (
            0  # of what is known: a verification that began before a change is not kept after it
        )

    def __len__(self) -> int:
        """How many credentials are known."""
        return len(self._known)

    async def authenticate(self, given: Credentials) -> Principal:
        """Who sent this. Raises `Unauthorized`, or `DatabaseUnavailable` when nobody can tell."""
        if self._open:
            return LOCAL
        credential = parse_explicit(given) or given.session
        if credential is None:
            raise Unauthorized(_MISSING)
        hashed = hash_credential(credential)
        known = self._known.get(hashed)
        if known is None or self._monotonic() - known.verified_at > FRESH_SECONDS:
            known = await self._once(
                "credential", hashed, partial(self._verified, credential, hashed, known)
            )
        principal = known.principal
        if principal.ends_at is not None and principal.ends_at <= self._clock():
            self._known.pop(hashed, None)
            raise Unauthorized(_WRONG)
        if principal.key_id is not None and (
            principal.key_id in self._used or len(self._used) < USED_MAX
        ):
            self._used[principal.key_id] = datetime.fromtimestamp(self._clock(), UTC)
        return principal

    def origin(self, principal: Principal) -> str:
        """By what a session of this principal is bound to the credential that it is exchanged for."""
        if principal.credential == "secret" and self._secret_hash:
            return f"secret:{hash_credential(self._secret_hash)[:16]}"
        return principal.credential

    async def is_still_valid(self, principals: Iterable[Principal]) -> dict[tuple[str, str], bool]:
        """Whether what these were admitted by may still be used, by credential and user: for what goes on long."""
        found: dict[tuple[str, str], bool] = {}
        async with self._database.read_session() as session:
            for principal in principals:
                rows: list[Mapping[Any, Any] | None] = []
                if principal.key_id is not None:
                    rows.append(await store.find_key_by_id(session, principal.key_id))
                if principal.credential.startswith("session:"):
                    rows.append(
                        await store.find_session(
                            session, principal.credential.removeprefix("session:")
                        )
                    )
                if not rows:
                    rows.append(
                        {**await store.find_user(session, principal.user_id), "expires_at": None}
                    )
                found[principal.credential, principal.user_id] = all(
                    row is not None and store.is_alive(row, self._clock()) for row in rows
                )
        return found

    async def read_limits(self, user_id: str) -> QuotaLimits | None:
        """The limits of a user on whose behalf an admin asks; known for `FRESH_SECONDS`, as credentials are."""
        return (await self._user(user_id)).limits

    async def require_enabled(self, user_id: str) -> None:
        """For a ticket, which names its user and no key. Raises `Unauthorized`."""
        if not self._open and (await self._user(user_id)).disabled:
            raise Unauthorized(_WRONG)

    def clear_cache(self) -> None:
        """Verify everybody anew: something about users, keys or plans was changed here."""
        self._generation += 1
        self._known.clear()
        self._users.clear()

    async def write_last_used(self) -> None:
        """Write when keys were last used, all in one transaction. Raises `DatabaseUnavailable`; nothing is lost then."""
        used, self._used = self._used, {}
        try:
            if used:
                await store.touch_keys(self._database, used)
        except DatabaseUnavailable:
            self._used = used | self._used
            raise

    async def _user(self, user_id: str) -> "_CachedUser":
        found = self._users.get(user_id)
        if found is None or self._monotonic() - found.read_at > FRESH_SECONDS:
            found = await self._once("user", user_id, partial(self._read_user, user_id, found))
        return found

    async def _read_user(self, user_id: str, found: "_CachedUser | None") -> "_CachedUser":
        at = self._monotonic()
        try:
            async with self._database.read_session() as session:
                row = await store.find_user(session, user_id)
        except DatabaseUnavailable:
            if found is None or at - found.read_at > STALE_SECONDS:
                raise
            return found
        found = _CachedUser(store.user_limits(row, Role.USER), bool(row["disabled"]), at)
        self._users[user_id] = found
        return found

    async def _once(self, kind: str, name: str, look: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `look` finds, also for those who ask the same before it has. Nobody's leaving ends it for the others."""
        about = (
            kind,
            name,
            self._generation,
        )  # who comes after a change does not get what was read before it
        task = self._asked.get(about)
        if task is None:
            task = self._asked[about] = asyncio.create_task(look())
            task.add_done_callback(partial(self._answered, about))
        found: T = await asyncio.shield(task)
        return found

    def _answered(self, about: tuple[str, str, int], task: asyncio.Task[Any]) -> None:
        del self._asked[about]
        if not task.cancelled():
            task.exception()  # those who asked have it, if any are left

    async def _verified(
        self, credential: str, hashed: str, known: _CachedPrincipal | None
    ) -> _CachedPrincipal:
        at, generation = self._monotonic(), self._generation
        try:
            principal = await self._verify(credential, hashed)
        except (DatabaseUnavailable, JwksUnavailable) as error:
            if known is None or at - known.verified_at > STALE_SECONDS:
                raise
            log.warning("credential.not_verified", error=str(error))
            return known
        except Unauthorized:
            self._known.pop(hashed, None)
            raise
        known = _CachedPrincipal(principal, at)
        if generation == self._generation:
            self._known[hashed] = known
        return known

    async def _verify(self, credential: str, hashed: str) -> Principal:
        if self._secret_hash is not None and hmac.compare_digest(hashed, self._secret_hash):
            return BOOTSTRAP
        if is_key(credential):
            return await self._verify_key(hashed)
        if is_session(credential):
            return await self._verify_session(hashed)
        if self._jwts is not None and credential.count(".") == 2:
            return await self._verify_jwt(self._jwts, credential)
        raise Unauthorized(_WRONG)

    async def _verify_jwt(self, jwts: JwtVerifier, token: str) -> Principal:
        claims = await jwts.verify(token)
        async with self._database.read_session() as session:
            user = await store.find_user(session, claims.user_id)
        if user["disabled"]:
            raise Unauthorized(_WRONG)
        limits = store.user_limits(user, claims.role)
        return Principal(
            user_id=claims.user_id,
            role=claims.role,
            credential="jwt",
            ends_at=claims.ends_at,
            limits=limits,
        )

    async def _verify_key(self, hashed: str) -> Principal:
        async with self._database.read_session() as session:
            row = await store.find_key(session, hashed)
        if (
            row is None
            or not hmac.compare_digest(row["hash"], hashed)
            or not store.is_alive(row, self._clock())
        ):
            raise Unauthorized(_WRONG)
        return _of_key(row)

    async def _verify_session(self, hashed: str) -> Principal:
        async with self._database.read_session() as session:
            row = await store.find_session(session, hashed)
            if (
                row is None
                or not hmac.compare_digest(row["hash"], hashed)
                or not store.is_alive(row, self._clock())
            ):
                raise Unauthorized(_WRONG)
            kind, _, rest = row["origin"].partition(":")
            key = await store.find_key_by_id(session, rest) if kind == _KEY else None
        if kind == _KEY and (key is None or not store.is_alive(key, self._clock())):
            raise Unauthorized(_WRONG)
        if kind == "secret" and row["origin"] != self.origin(BOOTSTRAP):
            raise Unauthorized(_WRONG)
        of_key = _of_key(key) if key is not None else None
        return Principal(
            user_id=row["user_id"],
            role=Role(row["role"]),
            scopes=frozenset(map(Scope, row["scopes"])),
            credential=f"session:{hashed}",
            key_id=of_key.key_id if of_key else None,
            ends_at=row["expires_at"].timestamp(),
            limits=store.user_limits(row, Role(row["role"])) if kind != "secret" else None,
            key_limits=of_key.key_limits if of_key else None,
        )


def _of_key(row: Mapping[Any, Any]) -> Principal:
    role = Role(row["role"])
    return Principal(
        user_id=row["user_id"],
        role=role,
        scopes=frozenset(map(Scope, row["scopes"])),
        credential=f"{_KEY}:{row['id']}",
        key_id=row["id"],
        ends_at=row["expires_at"].timestamp() if row["expires_at"] else None,
        limits=store.user_limits(row, role),
        key_limits=msgspec.convert(row["key_limits"], QuotaLimits)
        if row["key_limits"] is not None
        else None,
    )
