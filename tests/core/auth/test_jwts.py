"""JWTs: one algorithm, one issuer, one audience, and nothing that a token claims of itself."""

import asyncio
import base64
import json
import time
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from service.core.auth import store
from service.core.auth.jwts import (
    AGAIN_SECONDS,
    FRESH_SECONDS,
    STALE_SECONDS,
    JwtVerifier,
    create_token,
)
from service.core.auth.principals import BOOTSTRAP, Role
from service.core.errors import JwksUnavailable, SettingsInvalid, Unauthorized
from service.core.settings import Settings, load_settings
from tests.access import bearer, client
from tests.conftest import Serve, http_client
from tests.problems import is_problem
from tests.waiting import wait_until

SECRET = "shared-secret-of-more-than-32-bytes!"
HS: dict[str, Any] = {
    "auth": "keys",
    "jwt_algorithm": "HS256",
    "jwt_secret": SecretStr(SECRET),
    "jwt_issuer": "https://id.test",
    "jwt_audience": "kotae",
}
RS = HS | {"jwt_algorithm": "RS256", "jwt_secret": None, "jwt_jwks_url": "https://id.test/jwks"}
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def claims(**changed: Any) -> dict[str, Any]:
    """Valid claims with changes; None removes a claim."""
    good = {
        "sub": "alice",
        "iss": "https://id.test",
        "aud": "kotae",
        "exp": int(time.time()) + 600,
    } | changed
    return {name: value for name, value in good.items() if value is not None}


def token(
    key: Any = SECRET,
    algorithm: str | None = "HS256",
    headers: dict[str, Any] | None = None,
    **changed: Any,
) -> str:
    """A token; valid unless something is changed."""
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=headers)


def raw(header: dict[str, Any], body: Any, signature: bytes = b"") -> str:
    """A token that no library would create."""
    parts = (json.dumps(header).encode(), json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hs_with(public: bytes) -> str:
    """A token signed by HMAC with a public key as its secret."""
    return raw_signed({"alg": "HS256", "typ": "JWT", "kid": "k1"}, public)


def raw_with(changed: dict[str, Any]) -> str:
    """A signed token with claims that the library does not create."""
    return raw_signed({"alg": "HS256"}, SECRET.encode(), **changed)


def raw_signed(header: dict[str, Any], key: bytes, **changed: Any) -> str:
    """Any header with a valid HMAC."""
    unsigned = raw(header, claims(**changed)).rpartition(".")[0]
    signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        unsigned.encode(), key
    )
    return f"{unsigned}.{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"


BAD = {
    "alg none": raw({"alg": "none"}, claims()),
    "alg None": raw({"alg": "None"}, claims()),
    "alg nOnE": raw({"alg": "nOnE"}, claims(), b"x"),
    "alg absent": raw({"typ": "JWT"}, claims()),
    "alg a list": raw({"alg": ["HS256"]}, claims()),
    "another HS": token(algorithm="HS512", key=SECRET * 2),
    "another secret": token(key=SECRET[:-1] + "?"),
    "signature cut": token()[:-2],
    "signature empty": token().rpartition(".")[0] + ".",
    "crit": token(headers={"crit": ["x"], "x": 1}),
    "crit b64": token(headers={"crit": ["b64"], "b64": False}),
    "jku": token(headers={"jku": "https://evil.test/jwks"}),
    "jwk": token(headers={"jwk": {"kty": "oct", "k": "AAAA"}}),
    "x5u": token(headers={"x5u": "https://evil.test/x"}),
    "expired": token(exp=int(time.time()) - 1),
    "no exp": token(exp=None),
    "exp a word": raw_signed({"alg": "HS256"}, SECRET.encode()).replace(".", "x.", 1),
    "not yet": token(nbf=int(time.time()) + 600),
    "no aud": token(aud=None),
    "another aud": token(aud="other"),
    "no iss": token(iss=None),
    "another iss": token(iss="https://id.test.evil"),
    "no sub": token(sub=None),
    "empty sub": token(sub=""),
    "sub with NUL": token(sub="a\0"),
    "long sub": token(sub="a" * 201),
    "reserved sub": token(sub="admin"),
    "roles a number": token(roles=7),
    "a body that is a list": raw({"alg": "HS256"}, [1], b"x"),
    "not JSON": "e30.!!!.AA",
    "padding": token() + "=",
    "padding inside": token().replace(".", "=.", 1),
    "two paddings": token() + "==",
    "a space": token().replace(".", ". ", 1),
    "a line break": token() + "\n",
    "the other alphabet": raw({"alg": "HS256"}, claims(), b"\xff\xff\xff").replace("_", "/"),
    "exp in milliseconds": token(exp=int(time.time() + 600) * 1000),
    "exp in microseconds": token(exp=int(time.time() + 600) * 1_000_000),
    "exp beyond any float": token(exp=10**400),
    "exp as digits beyond any date": token(exp="9" * 30),
    "exp a negative number": token(exp=-1),
    "exp infinite": raw_with({"exp": float("inf")}),
    "exp not a number": raw_with({"exp": float("nan")}),
    "exp a list": raw_with({"exp": [1]}),
    "exp true": raw_with({"exp": True}),
    "exp a fraction of milliseconds": token(exp=time.time() * 1000 + 0.5),
    "exp as text in milliseconds": raw_with({"exp": f"{time.time() + 600:.0f}000"}),
    "nbf infinite": raw_with({"nbf": float("inf")}),
    "nbf not a number": raw_with({"nbf": float("nan")}),
    "iat infinite": raw_with({"iat": float("inf")}),
    "iat beyond any date": token(iat=10**400),
    "two dots": "..",
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_token_is_refused(name: str) -> None:
    """A token with any defect is refused."""
    with pytest.raises(Unauthorized):
        await JwtVerifier(Settings(**HS)).verify(BAD[name])


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_token_has_one_spelling(part: int) -> None:
    """Bits of a last base64 character that decoding ignores must be zero."""
    verifier, parts = JwtVerifier(Settings(**HS)), token(jti="xx").split(".")
    accepted = []
    for last in ALPHABET:
        spelled = [*parts]
        spelled[part] = parts[part][:-1] + last
        try:
            await verifier.verify(".".join(spelled))
            accepted.append(last)
        except Unauthorized:
            pass

    assert accepted == [parts[part][-1]]


async def test_valid_token_has_user_and_role() -> None:
    """User and role come from the configured claims; roles may be a list or a string."""
    settings = Settings(
        **HS, jwt_user_claim="email", jwt_roles_claim="groups", jwt_admin_role="boss"
    )
    for groups, role in (
        (["boss"], Role.ADMIN),
        ("staff boss", Role.ADMIN),
        ([], Role.USER),
        ("bosses", Role.USER),
        (["Boss"], Role.USER),
    ):
        claimed = await JwtVerifier(settings).verify(token(email="alice@x", groups=groups))
        assert (claimed.user_id, claimed.role) == ("alice@x", role)
    assert (
        await JwtVerifier(Settings(**HS)).verify(token(aud=["other", "kotae"]))
    ).user_id == "alice"


class IssuerFake:
    """A key set that can change or be unavailable."""

    def __init__(self, **keys: Any) -> None:
        self.keys = keys
        self.away = False
        self.asked = 0
        self.now = 1000.0

    async def __call__(self, url: str) -> bytes:
        assert url == "https://id.test/jwks"
        self.asked += 1
        if self.away:
            raise httpx2.ConnectError("away")
        entries = []
        for kid, key in self.keys.items():
            algorithm: Any = (
                ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
            )
            entries.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid})
        return json.dumps(
            {
                "keys": [
                    {"kty": "oct", "k": "AAAA", "kid": "oct"},
                    *entries,
                    {"kty": "RSA", "use": "enc", "kid": "enc"},
                ]
            }
        ).encode()


def create_verifier(issuer: IssuerFake, **changed: Any) -> JwtVerifier:
    """A verifier that uses this issuer."""
    return JwtVerifier(Settings(**RS | changed), fetch=issuer, clock=lambda: issuer.now)


async def test_public_key_is_used_only_with_its_algorithm() -> None:
    """HMAC with a public key, another key, and unknown or malformed kids are refused."""
    issuer = IssuerFake(k1=KEY)
    jwts = create_verifier(issuer)
    assert (await jwts.verify(token(KEY, "RS256", {"kid": "k1"}))).user_id == "alice"
    assert (await jwts.verify(token(KEY, "RS256"))).user_id == "alice"
    for bad in (
        hs_with(PUBLIC),
        token(OTHER, "RS256", {"kid": "k1"}),
        *(
            token(KEY, "RS256", {"kid": kid})
            for kid in ("k2", "../../dev/null", "k1' OR '1'='1", "oct", "enc", "")
        ),
        raw({"alg": "RS256", "kid": 7}, claims(), b"x"),
        raw({"alg": "RS256", "kid": ["k1"]}, claims(), b"x"),
        token(KEY, "RS512", {"kid": "k1"}),
    ):
        with pytest.raises(Unauthorized):
            await jwts.verify(bad)
    assert issuer.asked == 1


async def test_elliptic_keys_work_too() -> None:
    """ES256 is supported."""
    key = ec.generate_private_key(ec.SECP256R1())
    assert (
        await create_verifier(IssuerFake(e=key), jwt_algorithm="ES256").verify(
            token(key, "ES256", {"kid": "e"})
        )
    ).user_id == "alice"


async def test_rotated_key_is_fetched_without_traffic_for_forged_tokens() -> None:
    """An unknown kid triggers a fetch at most every ten seconds; a removed key is refused."""
    issuer = IssuerFake(k1=KEY)
    jwts = create_verifier(issuer)
    old, new = token(KEY, "RS256", {"kid": "k1"}), token(OTHER, "RS256", {"kid": "k2"})
    await jwts.verify(old)
    issuer.keys = {"k2": OTHER}
    with pytest.raises(Unauthorized):
        await jwts.verify(new)
    issuer.now += AGAIN_SECONDS
    assert (await jwts.verify(new)).user_id == "alice"
    for _ in range(50):
        with pytest.raises(Unauthorized):
            await jwts.verify(old)
    assert issuer.asked == 2


async def test_keys_stay_valid_without_the_issuer() -> None:
    """Known keys stay valid for a day without the issuer; otherwise the result is 503."""
    issuer = IssuerFake(k1=KEY)
    issuer.away = True
    jwts, good = (
        create_verifier(issuer),
        token(KEY, "RS256", {"kid": "k1"}, exp=int(time.time()) + 10**6),
    )
    with pytest.raises(JwksUnavailable):
        await jwts.verify(good)
    issuer.away, issuer.now = False, issuer.now + AGAIN_SECONDS
    await jwts.verify(good)
    issuer.away, issuer.now = True, issuer.now + FRESH_SECONDS + 1
    await jwts.verify(good)
    issuer.now += STALE_SECONDS
    with pytest.raises(JwksUnavailable):
        await jwts.verify(good)


class HangingIssuer:
    """An issuer that answers the first `answers` requests and then hangs until `release`."""

    def __init__(self, issuer: IssuerFake, answers: int = 1) -> None:
        self.issuer, self.answers = issuer, answers
        self.release = asyncio.Event()

    async def __call__(self, url: str) -> bytes:
        if self.issuer.asked >= self.answers:
            self.issuer.asked += 1
            await self.release.wait()
            self.issuer.asked -= 1
        return await self.issuer(url)


def create_hanging_verifier(issuer: HangingIssuer) -> JwtVerifier:
    """A verifier whose fetches time out after 20 seconds."""
    return JwtVerifier(
        Settings(**RS), fetch=issuer, fetch_seconds=20, clock=lambda: issuer.issuer.now
    )


@pytest.mark.parametrize("seconds", [FRESH_SECONDS + 1, STALE_SECONDS - 1])
async def test_known_keys_are_used_while_the_issuer_hangs(seconds: float) -> None:
    """A token with a cached key does not wait for a fetch in progress."""
    issuer = HangingIssuer(IssuerFake(k1=KEY))
    jwts = create_hanging_verifier(issuer)
    good = token(KEY, "RS256", {"kid": "k1"}, exp=int(time.time()) + 10**6)
    await jwts.verify(good)
    issuer.issuer.now += seconds

    async with asyncio.timeout(5):
        for _ in range(3):
            assert (await jwts.verify(good)).user_id == "alice"
    await jwts.aclose()


async def test_known_keys_are_used_while_an_unknown_key_is_awaited() -> None:
    """Forged tokens wait for the issuer; they do not make other tokens wait."""
    issuer = HangingIssuer(IssuerFake(k1=KEY))
    jwts = create_hanging_verifier(issuer)
    good = token(KEY, "RS256", {"kid": "k1"})
    await jwts.verify(good)
    issuer.issuer.now += AGAIN_SECONDS
    forged = asyncio.create_task(jwts.verify(token(OTHER, "RS256", {"kid": "k2"})))
    await wait_until(lambda: issuer.issuer.asked == 2)

    async with asyncio.timeout(5):
        assert (await jwts.verify(good)).user_id == "alice"
    await jwts.aclose()
    with pytest.raises(Unauthorized):
        await forged


async def test_keys_are_refreshed_in_the_background() -> None:
    """After a fetch in the background, a removed key is refused and a new one accepted."""
    issuer = IssuerFake(k1=KEY)
    jwts = create_verifier(issuer)
    old, new = token(KEY, "RS256", {"kid": "k1"}), token(OTHER, "RS256", {"kid": "k2"})
    await jwts.verify(old)
    issuer.keys = {"k2": OTHER}
    issuer.now += FRESH_SECONDS + 1
    await jwts.verify(old)
    await wait_until(lambda: issuer.asked == 2)

    assert (await jwts.verify(new)).user_id == "alice"
    with pytest.raises(Unauthorized):
        await jwts.verify(old)


async def test_keys_are_refreshed_without_requests() -> None:
    """`refresh_if_due` fetches the keys at an interval, so that a removed key becomes invalid."""
    issuer = IssuerFake(k1=KEY)
    jwts = create_verifier(issuer)
    for _ in range(3):
        jwts.refresh_if_due()
    await wait_until(lambda: issuer.asked == 1)
    await jwts.verify(token(KEY, "RS256", {"kid": "k1"}))
    issuer.keys, issuer.now = {"k2": OTHER}, issuer.now + FRESH_SECONDS + 1
    jwts.refresh_if_due()
    await wait_until(lambda: issuer.asked == 2)

    with pytest.raises(Unauthorized):
        await jwts.verify(token(KEY, "RS256", {"kid": "k1"}))


async def test_a_cancelled_request_does_not_cancel_the_fetch() -> None:
    """Another request that waits for the same fetch gets its result."""
    issuer = HangingIssuer(IssuerFake(k1=KEY), answers=0)
    jwts = create_hanging_verifier(issuer)
    good = token(KEY, "RS256", {"kid": "k1"})
    first, second = (asyncio.create_task(jwts.verify(good)) for _ in range(2))
    await wait_until(lambda: issuer.issuer.asked == 1)
    first.cancel()
    issuer.release.set()

    assert (await second).user_id == "alice"
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"jwt_secret": SecretStr("short")}, "32 bytes"),
        ({"jwt_secret": SecretStr("")}, "32 bytes"),
        ({"jwt_secret": None}, "32 bytes"),
        ({"jwt_issuer": None}, "KOTAE_JWT_ISSUER"),
        ({"jwt_audience": ""}, "KOTAE_JWT_AUDIENCE"),
        ({"jwt_algorithm": None}, "KOTAE_JWT_ALGORITHM"),
        ({"jwt_algorithm": "none"}, "JWT_ALGORITHM"),
        ({"jwt_algorithm": "RS256"}, "KOTAE_JWT_JWKS_URL"),
        (
            {"jwt_algorithm": "RS256", "jwt_secret": None, "jwt_jwks_url": "http://id.test/jwks"},
            "https",
        ),
        (
            {"jwt_algorithm": "RS256", "jwt_secret": None, "jwt_jwks_url": "file:///etc/passwd"},
            "https",
        ),
        ({"auth": "open"}, "KOTAE_AUTH=keys"),
    ],
)
def test_incomplete_configuration_is_refused_at_startup(changed: dict[str, Any], told: str) -> None:
    """Incomplete token settings are refused at startup, without showing a secret."""
    with pytest.raises(SettingsInvalid, match=told) as caught:
        load_settings(**HS | changed)
    assert SECRET not in str(caught.value)


async def test_token_through_the_routes(serve: Serve) -> None:
    """A token has its user's data and role, and ends when its user is disabled."""
    service = await serve(**HS)
    good = create_token(service.services.settings, "alice", Role.USER, 60)
    async with client(service, good) as alice:
        assert (await alice.get("/ai/logs")).status_code == 200
        assert (
            await alice.get("/ai/logs", headers={"Authorization": "", "X-API-Key": good})
        ).status_code == 401
        is_problem(await alice.get("/metrics"), 403, "forbidden")
        changed = good[:-1] + ("A" if good[-1] != "A" else "B")
        is_problem(
            await alice.get("/ai/logs", headers=bearer(changed[:-2] + "xx")), 401, "unauthorized"
        )
        await store.put_user(service.services.database, BOOTSTRAP, "alice", disabled=True)
        service.services.authenticator.clear_cache()
        is_problem(await alice.get("/ai/logs"), 401, "unauthorized")
    async with client(
        service, create_token(service.services.settings, "root", Role.ADMIN, 60)
    ) as root:
        assert (await root.get("/metrics")).status_code == 200
    async with http_client(
        service.url,
        headers={"X-API-Key": create_token(service.services.settings, "bob", Role.USER, 60)},
    ) as bob:
        assert (await bob.get("/ai/logs")).status_code == 200


async def test_oversized_token_is_refused(serve: Serve) -> None:
    """A credential has a maximum length, whatever its signature."""
    service = await serve(**HS)
    async with http_client(service.url) as caller:
        for size in (10_000, 100_000):
            assert (
                await caller.get("/ai/logs", headers=bearer(token(filler="x" * size)))
            ).status_code in {400, 401, 431}
