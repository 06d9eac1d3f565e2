"""The one door to `jwt` (PyJWT): tokens of one issuer, for one audience, by one algorithm.

Nothing in a token is believed before its signature is, and nothing in a token says how it is to be checked.

The algorithm is the configured one; a token that names another, or brings keys, addresses of keys or extensions
(`jwk`, `jku`, `x5u`, `x5c`, `crit`), is refused unread. `kid` only chooses among keys that we have.

A key set (JWKS) is read again every `FRESH_SECONDS`, and at once for an unknown `kid`, but no more often than every
`AGAIN_SECONDS`: an issuer that rotates its keys is followed, and forged tokens make no traffic. Failure policy: while the
set cannot be read, the keys that are known stay good for `STALE_SECONDS`; without any, 503.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec

from service.core.auth.principals import Role
from service.core.errors import JwksUnavailable, SettingsInvalid, Unauthorized
from service.core.lazy import LazyModule, load_module
from service.core.settings import Settings
from service.core.telemetry import log

if TYPE_CHECKING:
    import jwt
else:
    jwt = LazyModule("jwt")

FRESH_SECONDS = 300.0
AGAIN_SECONDS = 10.0
STALE_SECONDS = 86_400.0
FETCH_SECONDS = 5.0
SET_BYTES_MAX = 262_144
KEYS_MAX = 100
USER_CHARACTERS_MAX = 200
RESERVED = frozenset({"admin", "local"})  # whom the secret and open mode stand for
_FOREIGN = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64"})
_FAMILIES = {"RS": "RSA", "ES": "EC", "Ed": "OKP"}
_WRONG = "the token is not valid here"


class Claims(msgspec.Struct, frozen=True):
    """What a good token says: who, as what, and until when (seconds since 1970)."""

    user_id: str
    role: Role
    ends_at: float


class JwtVerifier:
    """Checks tokens as the settings say. `fetch` gets a key set, within `fetch_seconds`; `clock` is monotonic."""

    def __init__(
        self,
        settings: Settings,
        *,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        fetch_seconds: float = FETCH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.jwt_algorithm is not None  # noqa: S101 - whoever makes this has looked
        self._algorithm = settings.jwt_algorithm
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._user_claim, self._roles_claim, self._admin_role = (
            settings.jwt_user_claim,
            settings.jwt_roles_claim,
            settings.jwt_admin_role,
        )
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._url = settings.jwt_jwks_url
        self._fetch, self._fetch_seconds, self._clock = fetch or _get, fetch_seconds, clock
        load_module(jwt)  # not in the first request
        self._keys: dict[str, jwt.PyJWK] = {}  # by kid
        self._read_at: float | None = None  # when the keys that we have were read
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()

    async def verify(self, token: str) -> Claims:
        """What the token says. Raises `Unauthorized`, or `JwksUnavailable` when nobody can tell."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthorized(_WRONG) from error
        if header.get("alg") != self._algorithm or not _FOREIGN.isdisjoint(header):
            raise Unauthorized(_WRONG)
        key = self._secret if self._secret is not None else await self._key(header.get("kid"))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[self._algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options={"require": ["exp", "iss", "aud", self._user_claim]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Unauthorized(_WRONG) from error
        return self._read(claims)

    def _read(self, claims: dict[str, Any]) -> Claims:
        user_id, roles = claims.get(self._user_claim), claims.get(self._roles_claim, [])
        roles = roles.split() if isinstance(roles, str) else roles
        if (
            not isinstance(user_id, str)
            or not 0 < len(user_id) <= USER_CHARACTERS_MAX
            or not user_id.isprintable()
        ):
            raise Unauthorized(_WRONG)
        if not isinstance(roles, list):
            raise Unauthorized(_WRONG)
        role = Role.ADMIN if self._admin_role in roles else Role.USER
        if role is Role.USER and user_id in RESERVED:
            raise Unauthorized(_WRONG)
        return Claims(user_id, role, float(claims["exp"]))

    async def _key(self, kid: object) -> "jwt.PyJWK":
        """The key of this name; without a name, the only one there is."""
        if kid is not None and not isinstance(kid, str):
            raise Unauthorized(_WRONG)
        if self._age() > FRESH_SECONDS or self._find(kid) is None:
            async with self._reading:
                if self._age() > FRESH_SECONDS or self._find(kid) is None:
                    await self._read_set()
        if self._age() > STALE_SECONDS:
            raise JwksUnavailable("the keys of the tokens' issuer cannot be read")
        found = self._find(kid)
        if found is None:
            raise Unauthorized(_WRONG)
        return found

    def _find(self, kid: str | None) -> "jwt.PyJWK | None":
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock() - self._read_at

    async def _read_set(self) -> None:
        """Read the set, unless that was tried just now. What cannot be read leaves the keys as they are."""
        at = self._clock()
        if self._tried_at is not None and at - self._tried_at < AGAIN_SECONDS:
            return
        self._tried_at = at
        try:
            async with asyncio.timeout(self._fetch_seconds):
                keys = self._usable(msgspec.json.decode(await self._fetch(str(self._url))))
        except (httpx2.HTTPError, TimeoutError, msgspec.DecodeError, ValueError) as error:
            log.warning("jwks.unread", error=type(error).__name__)
            return
        self._keys, self._read_at = keys, at

    def _usable(self, found: Any) -> "dict[str, jwt.PyJWK]":
        """The keys of a set that may sign with our algorithm. Raises `ValueError` if it has none."""
        keys: dict[str, jwt.PyJWK] = {}
        entries = found.get("keys") if isinstance(found, dict) else None
        for n, entry in enumerate(entries[:KEYS_MAX] if isinstance(entries, list) else []):
            if not isinstance(entry, dict) or entry.get("kty") != _FAMILIES[self._algorithm[:2]]:
                continue
            if (
                entry.get("use", "sig") != "sig"
                or entry.get("alg", self._algorithm) != self._algorithm
            ):
                continue
            try:
                keys[str(entry.get("kid", f"#{n}"))] = jwt.PyJWK(entry, self._algorithm)
            except jwt.PyJWTError:
                continue
        if not keys:
            raise ValueError("the set has no key that fits")
        return keys


def create_token(settings: Settings, user_id: str, role: Role, seconds: float) -> str:
    """A token for development, by the shared secret. Raises `SettingsInvalid` if there is none."""
    if settings.jwt_secret is None or settings.jwt_algorithm is None:
        raise SettingsInvalid(
            "tokens are made here with KOTAE_JWT_ALGORITHM=HS256 and KOTAE_JWT_SECRET only"
        )
    at = datetime.now(UTC)
    claims = {
        settings.jwt_user_claim: user_id,
        settings.jwt_roles_claim: [settings.jwt_admin_role] if role is Role.ADMIN else [],
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "iat": at,
        "exp": at + timedelta(seconds=seconds),
    }
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), settings.jwt_algorithm)


async def _get(url: str) -> bytes:
    """GET a key set. Redirects are not followed, proxies of the environment not used, compressed bodies not decompressed.

    Raises `httpx2.HTTPError`, or `ValueError` for a body of more than `SET_BYTES_MAX` bytes.
    """
    body = bytearray()
    client = httpx2.AsyncClient(
        timeout=FETCH_SECONDS, trust_env=False, headers={"Accept-Encoding": "identity"}
    )
    async with client, client.stream("GET", url) as response:
        response.raise_for_status()  # raises for redirects too
        async for part in response.aiter_raw():
            body += part
            if len(body) > SET_BYTES_MAX:
                raise ValueError("the key set is too large")
    return bytes(body)
