"""Verification of JWTs of one issuer, for one audience, with one algorithm.

The importer of `jwt` (PyJWT), besides the signatures of receipts.

Nothing in a token is used before its signature is verified, and a token never selects how it is
verified: tokens that name another algorithm, or bring keys, key addresses or extensions (`jwk`,
`jku`, `x5u`, `x5c`, `crit`), are refused. `kid` only selects among the configured keys.

A key set (JWKS) is fetched again every `FRESH_SECONDS`, and immediately for an unknown `kid`, but
at most every `AGAIN_SECONDS`: key rotation is followed, and forged tokens cause no traffic. The
fetch is a background task: tokens with a cached key never wait for the issuer.
Failure policy: while the set cannot be fetched, known keys stay valid for `STALE_SECONDS`; without
any, 503.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec

from service.core.auth.credentials import is_canonical_base64url
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
EXPIRY_MAX = 253_402_300_799  # the last second of year 9999
RESERVED = frozenset({"admin", "local"})  # the user ids of the secret and of open mode
_REFUSED_HEADERS = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64"})
_FAMILIES = {"RS": "RSA", "ES": "EC", "Ed": "OKP"}
_REFUSED = "the token is invalid or expired"


class Claims(msgspec.Struct, frozen=True):
    """The verified claims: user, role, and expiry (seconds since 1970)."""

    user_id: str
    role: Role
    ends_at: float


class JwtVerifier:
    """Verifies tokens according to the settings.

    `fetch` gets a key set within `fetch_seconds`; `clock` is monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        fetch_seconds: float = FETCH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.jwt_algorithm is not None  # noqa: S101 - checked by the caller
        self._algorithm = settings.jwt_algorithm
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._user_claim, self._roles_claim, self._admin_role = (
            settings.jwt_user_claim,
            settings.jwt_roles_claim,
            settings.jwt_admin_role,
        )
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._url = settings.jwt_jwks_url
        self._fetch, self._fetch_seconds, self._clock = (
            fetch or _fetch_key_set,
            fetch_seconds,
            clock,
        )
        load_module(jwt)  # not during the first request
        self._keys: dict[str, jwt.PyJWK] = {}  # by kid
        self._read_at: float | None = None  # when the current keys were fetched
        self._tried_at: float | None = None
        self._refresh: asyncio.Task[None] | None = None

    def refresh_if_due(self) -> None:
        """Start a fetch of the key set if the last one is `FRESH_SECONDS` ago. Does not wait.

        Called periodically, so that a removed key does not stay valid without traffic.
        """
        if self._url and (self._tried_at is None or self._since(self._tried_at) > FRESH_SECONDS):
            self._start_refresh()

    async def aclose(self) -> None:
        """Cancel a fetch in progress. Idempotent."""
        if self._refresh:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])

    async def verify(self, token: str) -> Claims:
        """The claims of a token. Raises `Unauthorized`, or `JwksUnavailable` without a key set."""
        if not all(map(is_canonical_base64url, token.split("."))):
            raise Unauthorized(_REFUSED)
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthorized(_REFUSED) from error
        if header.get("alg") != self._algorithm or not _REFUSED_HEADERS.isdisjoint(header):
            raise Unauthorized(_REFUSED)
        key = self._secret if self._secret is not None else await self._get_key(header.get("kid"))
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
            raise Unauthorized(_REFUSED) from error
        return self._parse_claims(claims)

    def _parse_claims(self, claims: dict[str, Any]) -> Claims:
        user_id, roles = claims.get(self._user_claim), claims.get(self._roles_claim, [])
        roles = roles.split() if isinstance(roles, str) else roles
        if (
            not isinstance(user_id, str)
            or not 0 < len(user_id) <= USER_CHARACTERS_MAX
            or not user_id.isprintable()
        ):
            raise Unauthorized(_REFUSED)
        if not isinstance(roles, list):
            raise Unauthorized(_REFUSED)
        role = Role.ADMIN if self._admin_role in roles else Role.USER
        if role is Role.USER and user_id in RESERVED:
            raise Unauthorized(_REFUSED)
        return Claims(user_id, role, _parse_expiry(claims["exp"]))

    async def _get_key(self, kid: object) -> "jwt.PyJWK":
        """The key with this id; without an id, the only key of the set."""
        if kid is not None and not isinstance(kid, str):
            raise Unauthorized(_REFUSED)
        if self._since(self._read_at) > FRESH_SECONDS or self._find_key(kid) is None:
            self._start_refresh()
        if self._refresh and (
            self._since(self._read_at) > STALE_SECONDS or self._find_key(kid) is None
        ):
            await asyncio.wait([self._refresh])  # a cancelled caller does not cancel the fetch
        if self._since(self._read_at) > STALE_SECONDS:
            raise JwksUnavailable("the key set of the token issuer cannot be fetched")
        key = self._find_key(kid)
        if key is None:
            raise Unauthorized(_REFUSED)
        return key

    def _find_key(self, kid: str | None) -> "jwt.PyJWK | None":
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _since(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment

    def _start_refresh(self) -> None:
        """Start a fetch unless one is in progress or was started recently."""
        if self._since(self._tried_at) >= AGAIN_SECONDS and not (
            self._refresh and not self._refresh.done()
        ):
            self._tried_at = self._clock()
            self._refresh = asyncio.create_task(self._refresh_keys(self._tried_at), name="jwks")

    async def _refresh_keys(self, now: float) -> None:
        """Fetch the key set; on failure keep the current keys."""
        try:
            async with asyncio.timeout(self._fetch_seconds):
                keys = self._select_keys(msgspec.json.decode(await self._fetch(str(self._url))))
        except (httpx2.HTTPError, TimeoutError, msgspec.DecodeError, ValueError) as error:
            log.warning("jwks.unread", error=type(error).__name__)
        except Exception:  # noqa: BLE001 - nothing awaits the task, and the keys stay as they are
            log.exception("jwks.broken")
        else:
            self._keys, self._read_at = keys, now

    def _select_keys(self, key_set: Any) -> "dict[str, jwt.PyJWK]":
        """The keys of a set that match our algorithm. Raises `ValueError` if there is none."""
        keys: dict[str, jwt.PyJWK] = {}
        entries = key_set.get("keys") if isinstance(key_set, dict) else None
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
            raise ValueError("the set has no matching key")
        return keys


def _parse_expiry(exp: Any) -> float:
    """The expiry in seconds since 1970. Raises `Unauthorized` after year 9999: it is no date."""
    if not 0 <= int(exp) <= EXPIRY_MAX:  # PyJWT has accepted it, so it is a number or digits
        raise Unauthorized("the claim exp of the token must be in seconds since 1970")
    return float(exp)


def create_token(settings: Settings, user_id: str, role: Role, seconds: float) -> str:
    """Create a development token with the shared secret. Raises `SettingsInvalid` without one."""
    if settings.jwt_secret is None or settings.jwt_algorithm is None:
        raise SettingsInvalid(
            "creating tokens requires KOTAE_JWT_ALGORITHM=HS256 and KOTAE_JWT_SECRET"
        )
    now = datetime.now(UTC)
    claims = {
        settings.jwt_user_claim: user_id,
        settings.jwt_roles_claim: [settings.jwt_admin_role] if role is Role.ADMIN else [],
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "iat": now,
        "exp": now + timedelta(seconds=seconds),
    }
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), settings.jwt_algorithm)


async def _fetch_key_set(url: str) -> bytes:
    """GET a key set, without redirects, proxies of the environment or decompression.

    Raises `httpx2.HTTPError`, or `ValueError` for a body of more than `SET_BYTES_MAX` bytes.
    """
    body = bytearray()
    client = httpx2.AsyncClient(
        timeout=FETCH_SECONDS, trust_env=False, headers={"Accept-Encoding": "identity"}
    )
    async with client, client.stream("GET", url) as response:
        response.raise_for_status()  # also for redirects
        async for part in response.aiter_raw():
            body += part
            if len(body) > SET_BYTES_MAX:
                raise ValueError("the key set is too large")
    return bytes(body)
