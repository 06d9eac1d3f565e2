"""The authenticator turns a credential into a `Principal`.

A verified credential is cached for `FRESH_SECONDS` under its full SHA-256; then it is read from
the database again, so that revocations by other processes take effect. Revocations by this process
clear the cache. The expiry is checked on every request. The cache is bounded, entries are evicted
in insertion order. Concurrent requests with the same uncached credential share one lookup.

Failure policy: closed. While the database cannot be read, a credential that was valid stays valid
for `STALE_SECONDS` (nothing can be revoked in the meantime); any other is refused with 503. When
the database hangs, requests with such a credential wait for it for up to `REFRESH_SECONDS`, and
later ones not at all.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from copy import copy
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
    parse_header_credential,
)
from service.core.auth.jwts import JwtVerifier
from service.core.auth.principals import (
    BOOTSTRAP,
    LOCAL,
    PERMANENT_CREDENTIALS,
    Principal,
    Role,
    Scope,
)
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, JwksUnavailable, Unauthorized
from service.core.fair_share import current_user
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.settings import Settings
from service.core.telemetry import log

FRESH_SECONDS = 3.0
STALE_SECONDS = 300.0
REFRESH_SECONDS = 0.1  # maximum wait for a lookup whose credential was valid recently
CACHE_MAX = 10_000  # credentials, and the same number of users
USED_MAX = 10_000  # keys whose last use has not been written yet
T = TypeVar("T")
_KEY_ORIGIN = "key"  # prefix of `Principal.credential` and `sessions.origin` before the id of a key
_INVALID_CREDENTIAL = "the credential is invalid, expired or revoked"
_MISSING_CREDENTIAL = (
    "send an API key as bearer token, in X-API-Key, or as the password of HTTP Basic"
)


class _CachedPrincipal(msgspec.Struct):
    principal: Principal
    verified_at: float  # monotonic


class _CachedUser(msgspec.Struct, frozen=True):
    subject: QuotaSubject
    read_at: float  # monotonic


class _PendingLookup(msgspec.Struct, frozen=True):
    task: asyncio.Task[Any]
    started_at: float  # monotonic


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
        self._cache: FIFOCache[str, _CachedPrincipal] = FIFOCache(cache_max)
        # When credentials of principals were last valid, by credential and user id.
        self._valid_at: FIFOCache[tuple[str, str], float] = FIFOCache(cache_max)
        self._users: FIFOCache[str, _CachedUser] = FIFOCache(cache_max)
        self._last_used: dict[str, datetime] = {}
        # Database lookups in progress.
        self._pending_lookups: dict[tuple[str, str, int], _PendingLookup] = {}  # oldest first
        self._caller: Principal | None = None  # of a request that another replica has checked
        self._generation = (
            0  # incremented by `clear_cache`: results of earlier lookups are not cached
        )

    def __len__(self) -> int:
        """Number of cached credentials."""
        return len(self._cache)

    async def authenticate(self, credentials: Credentials) -> Principal:
        """The principal of a request.

        Raises `Unauthorized`, `DatabaseUnavailable` and `JwksUnavailable`.
        """
        if self._caller is not None:
            await self.require_valid(self._caller)
            return self._caller
        if self._open:
            return LOCAL
        credential = parse_header_credential(credentials)
        if credential is None:
            credential = credentials.session
            if credential is None:
                raise Unauthorized(_MISSING_CREDENTIAL)
            if not is_session(credential):  # others are not checked for CSRF
                raise Unauthorized(_INVALID_CREDENTIAL)
        hashed = hash_credential(credential)
        cached = self._cache.get(hashed)
        if cached is None or self._monotonic() - cached.verified_at > FRESH_SECONDS:
            cached = await self._refresh(credential, hashed, cached)
        principal = cached.principal
        if principal.has_expired(self._clock()):
            self._cache.pop(hashed, None)
            raise Unauthorized(_INVALID_CREDENTIAL)
        if principal.key_id is not None and (
            principal.key_id in self._last_used or len(self._last_used) < USED_MAX
        ):
            self._last_used[principal.key_id] = datetime.fromtimestamp(self._clock(), UTC)
        return principal

    def with_caller(self, caller: Principal) -> "Authenticator":
        """Return an authenticator for one request, whose caller another replica has checked.

        The credential must still be valid.
        """
        authenticator = copy(self)
        authenticator._caller = caller  # noqa: SLF001 - of the same class
        return authenticator

    def get_session_origin(self, principal: Principal) -> str:
        """The value that binds a session to the credential it was exchanged for."""
        if principal.credential == "secret" and self._secret_hash:
            return f"secret:{hash_credential(self._secret_hash)[:16]}"
        return principal.credential

    async def check_validity(self, principals: Iterable[Principal]) -> dict[tuple[str, str], bool]:
        """Whether these principals' credentials are still valid, by credential and user id.

        Raises `DatabaseUnavailable`.
        """
        valid: dict[tuple[str, str], bool] = {}
        async with self._database.read_session() as session:
            for principal in principals:
                rows: list[Mapping[Any, Any] | None] = []
                if principal.key_id is not None:
                    rows.append(await store.find_key_by_id(session, principal.key_id))
                if principal.is_session:
                    rows.append(
                        await store.find_session(
                            session, principal.credential.removeprefix("session:")
                        )
                    )
                if not rows:
                    rows.append(
                        {**await store.find_user(session, principal.user_id), "expires_at": None}
                    )
                valid[principal.credential, principal.user_id] = all(
                    row is not None and store.is_active(row, self._clock()) for row in rows
                )
        return valid

    async def read_subject(self, user_id: str) -> QuotaSubject:
        """A user for whom an admin makes a request, with limits; cached for `FRESH_SECONDS`."""
        return (await self._get_user(user_id)).subject

    async def require_valid(self, principal: Principal) -> None:
        """Require that the credential of an earlier request is still valid; for tickets.

        The result is cached like credentials. Raises `Unauthorized` and `DatabaseUnavailable`.
        """
        if principal.has_expired(self._clock()):
            raise Unauthorized(_INVALID_CREDENTIAL)
        if principal.credential in PERMANENT_CREDENTIALS:
            return
        name = (principal.credential, principal.user_id)
        valid_at = self._valid_at.get(name)
        if valid_at is None or self._monotonic() - valid_at > FRESH_SECONDS:
            lookup = partial(self._check_and_cache, principal, valid_at)
            await self._run_once("principal", repr(name), lookup)

    async def _check_and_cache(self, principal: Principal, valid_at: float | None) -> None:
        now, generation = self._monotonic(), self._generation
        name = (principal.credential, principal.user_id)
        try:
            valid = (await self.check_validity([principal]))[name]
        except DatabaseUnavailable:
            if valid_at is None or now - valid_at > STALE_SECONDS:
                raise
            return
        if not valid:
            self._valid_at.pop(name, None)
            raise Unauthorized(_INVALID_CREDENTIAL)
        if generation == self._generation:
            self._valid_at[name] = now

    def refresh_keys(self) -> None:
        """Start fetching the issuer's keys if they are due. Does not wait."""
        if self._jwts:
            self._jwts.refresh_if_due()

    def clear_cache(self) -> None:
        """Forget all cached credentials after a change of users, keys or plans in this process."""
        self._generation += 1
        self._cache.clear()
        self._valid_at.clear()
        self._users.clear()

    async def write_last_used(self) -> None:
        """Write when keys were last used, in one transaction.

        Raises `DatabaseUnavailable`; the times are then written by the next call.
        """
        used, self._last_used = self._last_used, {}
        try:
            if used:
                await store.touch_keys(self._database, used)
        except DatabaseUnavailable:
            self._last_used = used | self._last_used
            raise

    async def _get_user(self, user_id: str) -> "_CachedUser":
        cached = self._users.get(user_id)
        if cached is None or self._monotonic() - cached.read_at > FRESH_SECONDS:
            cached = await self._run_once(
                "user", user_id, partial(self._read_user, user_id, cached)
            )
        return cached

    async def _read_user(self, user_id: str, cached: "_CachedUser | None") -> "_CachedUser":
        now = self._monotonic()
        try:
            async with self._database.read_session() as session:
                row = await store.find_user(session, user_id)
        except DatabaseUnavailable:
            if cached is None or now - cached.read_at > STALE_SECONDS:
                raise
            return cached
        limits, terms = store.get_user_limits(row, Role.USER), store.get_user_terms(row, Role.USER)
        cached = _CachedUser(QuotaSubject.for_user(user_id, limits, terms), now)
        self._users[user_id] = cached
        return cached

    async def _refresh(
        self, credential: str, hashed: str, cached: _CachedPrincipal | None
    ) -> _CachedPrincipal:
        """Verify a credential again. A usable one is not kept waiting by a hanging database."""
        verify = partial(self._verify_and_cache, credential, hashed, cached)
        if cached is None or self._monotonic() - cached.verified_at > STALE_SECONDS:
            return await self._run_once("credential", hashed, verify)
        if not self._database.health.is_available:
            return cached
        task = self._start_lookup("credential", hashed, verify)
        if not self._has_late_lookup():
            await asyncio.wait([task], timeout=REFRESH_SECONDS)
        return task.result() if task.done() else cached

    def _has_late_lookup(self) -> bool:
        """Whether the oldest lookup takes so long that the database may hang."""
        oldest = next(iter(self._pending_lookups.values()))
        return self._monotonic() - oldest.started_at > REFRESH_SECONDS

    async def _run_once(
        self, kind: str, name: str, lookup: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Share one lookup among concurrent callers; cancelling one does not cancel the others."""
        return await asyncio.shield(self._start_lookup(kind, name, lookup))

    def _start_lookup(
        self, kind: str, name: str, lookup: Callable[[], Coroutine[Any, Any, T]]
    ) -> asyncio.Task[T]:
        """Start a lookup, or return the one in progress."""
        # After `clear_cache`, callers do not join an earlier lookup.
        lookup_key = (
            kind,
            name,
            self._generation,
        )
        pending = self._pending_lookups.get(lookup_key)
        if pending is not None:
            return pending.task
        # Lookups take turns like users: one is not behind all those of an attacker.
        context = copy_context()
        context.run(current_user.set, name)
        task = asyncio.create_task(lookup(), context=context)
        self._pending_lookups[lookup_key] = _PendingLookup(task, self._monotonic())
        task.add_done_callback(partial(self._remove_lookup, lookup_key))
        return task

    def _remove_lookup(self, lookup_key: tuple[str, str, int], task: asyncio.Task[Any]) -> None:
        del self._pending_lookups[lookup_key]
        if not task.cancelled():
            task.exception()  # the callers have received it, if any are left

    async def _verify_and_cache(
        self, credential: str, hashed: str, cached: _CachedPrincipal | None
    ) -> _CachedPrincipal:
        now, generation = self._monotonic(), self._generation
        try:
            principal = await self._verify(credential, hashed)
        except (DatabaseUnavailable, JwksUnavailable) as error:
            if cached is None or now - cached.verified_at > STALE_SECONDS:
                raise
            log.warning("credential.not_verified", error=str(error))
            return cached
        except Unauthorized:
            self._cache.pop(hashed, None)
            raise
        cached = _CachedPrincipal(principal, now)
        if generation == self._generation:
            self._cache[hashed] = cached
            self._valid_at[principal.credential, principal.user_id] = now
        return cached

    async def _verify(self, credential: str, hashed: str) -> Principal:
        if self._secret_hash is not None and hmac.compare_digest(hashed, self._secret_hash):
            return BOOTSTRAP
        if is_key(credential):
            return await self._verify_key(hashed)
        if is_session(credential):
            return await self._verify_session(hashed)
        if self._jwts is not None and credential.count(".") == 2:
            return await self._verify_jwt(self._jwts, credential)
        raise Unauthorized(_INVALID_CREDENTIAL)

    async def _verify_jwt(self, jwts: JwtVerifier, token: str) -> Principal:
        claims = await jwts.verify(token)
        async with self._database.read_session() as session:
            user = await store.find_user(session, claims.user_id)
        if user["disabled"]:
            raise Unauthorized(_INVALID_CREDENTIAL)
        return Principal(
            user_id=claims.user_id,
            role=claims.role,
            credential="jwt",
            ends_at=claims.ends_at,
            limits=store.get_user_limits(user, claims.role),
            terms=store.get_user_terms(user, claims.role),
        )

    async def _verify_key(self, hashed: str) -> Principal:
        async with self._database.read_session() as session:
            row = await store.find_key(session, hashed)
        if (
            row is None
            or not hmac.compare_digest(row["hash"], hashed)
            or not store.is_active(row, self._clock())
        ):
            raise Unauthorized(_INVALID_CREDENTIAL)
        return _create_key_principal(row)

    async def _verify_session(self, hashed: str) -> Principal:
        async with self._database.read_session() as session:
            row = await store.find_session(session, hashed)
            if (
                row is None
                or not hmac.compare_digest(row["hash"], hashed)
                or not store.is_active(row, self._clock())
            ):
                raise Unauthorized(_INVALID_CREDENTIAL)
            kind, _, rest = row["origin"].partition(":")
            key = await store.find_key_by_id(session, rest) if kind == _KEY_ORIGIN else None
        if kind == _KEY_ORIGIN and (key is None or not store.is_active(key, self._clock())):
            raise Unauthorized(_INVALID_CREDENTIAL)
        if kind == "secret" and row["origin"] != self.get_session_origin(BOOTSTRAP):
            raise Unauthorized(_INVALID_CREDENTIAL)
        key_principal = _create_key_principal(key) if key is not None else None
        return Principal(
            user_id=row["user_id"],
            role=Role(row["role"]),
            scopes=frozenset(map(Scope, row["scopes"])),
            credential=f"session:{hashed}",
            key_id=key_principal.key_id if key_principal else None,
            key_lineage=key_principal.key_lineage if key_principal else None,
            ends_at=row["expires_at"].timestamp(),
            origin_ends_at=_get_origin_expiry(kind, row, key_principal),
            limits=store.get_user_limits(row, Role(row["role"])) if kind != "secret" else None,
            terms=store.get_user_terms(row, Role(row["role"])) if kind != "secret" else None,
            key_limits=key_principal.key_limits if key_principal else None,
        )


def _create_key_principal(row: Mapping[Any, Any]) -> Principal:
    role = Role(row["role"])
    return Principal(
        user_id=row["user_id"],
        role=role,
        scopes=frozenset(map(Scope, row["scopes"])),
        credential=f"{_KEY_ORIGIN}:{row['id']}",
        key_id=row["id"],
        key_lineage=row["lineage"],
        ends_at=row["expires_at"].timestamp() if row["expires_at"] else None,
        limits=store.get_user_limits(row, role),
        terms=store.get_user_terms(row, role),
        key_limits=msgspec.convert(row["key_limits"], QuotaLimits)
        if row["key_limits"] is not None
        else None,
    )


def _get_origin_expiry(
    kind: str, session: Mapping[Any, Any], key_principal: Principal | None
) -> float | None:
    """The expiry of the credential of a session; for a token, the session's, which is no later."""
    if key_principal is not None:
        return key_principal.ends_at
    expires_at: datetime = session["expires_at"]
    return None if kind == "secret" else expires_at.timestamp()
