"""Fetching a key set (`core/auth/jwts.py`) over real sockets, plain and TLS."""

import asyncio
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import RSAAlgorithm

from service.core.auth.jwts import SET_BYTES_MAX, JwtVerifier
from service.core.errors import JwksUnavailable
from service.core.settings import Settings
from tests.core.auth.test_jwts import KEY, RS, token

GOOD = token(KEY, "RS256", {"kid": "k1"})
KEY_SET = json.dumps(
    {"keys": [RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True) | {"kid": "k1"}]}
).encode()

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def respond_with(body: bytes, status: str = "200 OK", **headers: str) -> Answer:
    """Respond with this body."""
    lines = [
        f"HTTP/1.1 {status}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


class Issuer:
    """An issuer on a socket: its address and the heads of the requests."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.url = ""


@asynccontextmanager
async def run_issuer(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Issuer]:
    """Serve one response per connection."""
    running = Issuer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            running.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        running.url = (
            f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
        )
        yield running


def create_verifier(url: str, fetch_seconds: float = 20) -> JwtVerifier:
    """A verifier that fetches its key set from this address."""
    return JwtVerifier(Settings(**RS | {"jwt_jwks_url": url}), fetch_seconds=fetch_seconds)


async def test_key_set_is_fetched_once() -> None:
    """The set is requested once, by a plain GET without credentials."""
    async with run_issuer(respond_with(KEY_SET)) as running:
        jwts = create_verifier(running.url)
        users = [(await jwts.verify(GOOD)).user_id for _ in range(2)]

    assert users == ["alice", "alice"]
    (request,) = running.requests
    assert request.startswith(b"GET /jwks HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()
    assert b"cookie" not in request.lower()


@pytest.mark.parametrize(
    "status",
    ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"],
)
async def test_redirect_is_refused(status: str) -> None:
    """The target of a redirect is not requested: it could be an internal address."""
    async with (
        run_issuer(respond_with(KEY_SET)) as elsewhere,
        run_issuer(respond_with(KEY_SET, status, location=elsewhere.url)) as running,
    ):
        with pytest.raises(JwksUnavailable):
            await create_verifier(running.url).verify(GOOD)

    assert len(running.requests) == 1
    assert elsewhere.requests == []


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "500 Internal Server Error"])
async def test_error_status_is_no_key_set(status: str) -> None:
    """The body of an error is not used as a key set."""
    async with run_issuer(
        respond_with(b"" if status.startswith("204") else KEY_SET, status)
    ) as running:
        with pytest.raises(JwksUnavailable):
            await create_verifier(running.url).verify(GOOD)


@pytest.mark.parametrize("excess", [0, 1])
async def test_key_set_has_a_size_limit(excess: int) -> None:
    """A set of `SET_BYTES_MAX` bytes is read, a larger one is refused."""
    body = KEY_SET + b" " * (SET_BYTES_MAX - len(KEY_SET) + excess)
    async with run_issuer(respond_with(body)) as running:
        if excess:
            with pytest.raises(JwksUnavailable):
                await create_verifier(running.url).verify(GOOD)
        else:
            assert (await create_verifier(running.url).verify(GOOD)).user_id == "alice"


async def test_endless_key_set_is_aborted() -> None:
    """The connection is closed once the limit is exceeded."""
    left = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 65_536)
                await writer.drain()
        finally:
            left.set()

    async with run_issuer(endless) as running:
        with pytest.raises(JwksUnavailable):
            await create_verifier(running.url).verify(GOOD)
        async with asyncio.timeout(10):
            await left.wait()


async def test_compressed_key_set_is_refused() -> None:
    """Compression is not offered, and a compressed body is not decompressed."""
    packed = zlib.compress(KEY_SET, wbits=31)
    async with run_issuer(respond_with(packed, **{"content-encoding": "gzip"})) as running:
        with pytest.raises(JwksUnavailable):
            await create_verifier(running.url).verify(GOOD)

    assert b"accept-encoding: identity" in running.requests[0].lower()


async def test_environment_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not used: it could replace the keys."""
    async with (
        run_issuer(respond_with(b"{}")) as proxy,
        run_issuer(respond_with(KEY_SET)) as running,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/jwks"))
        assert (await create_verifier(running.url).verify(GOOD)).user_id == "alice"

    assert proxy.requests == []


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"],
    ids=["before the head", "in the body"],
)
async def test_silent_issuer_times_out(sent: bytes) -> None:
    """The whole fetch has one deadline, for head and body."""
    released = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await released.wait()

    async with run_issuer(hang) as running:
        with pytest.raises(JwksUnavailable):
            async with asyncio.timeout(10):
                await create_verifier(running.url, fetch_seconds=0.1).verify(GOOD)
        released.set()


async def test_issuer_that_does_not_listen_is_unavailable() -> None:
    """A refused connection is 503, like any other unavailable set."""
    async with run_issuer(respond_with(KEY_SET)) as running:
        pass
    with pytest.raises(JwksUnavailable):
        await create_verifier(running.url).verify(GOOD)


def create_tls_context(folder: Path) -> ssl.SSLContext:
    """A server's TLS context with an untrusted certificate for 127.0.0.1."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")]),
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name,
            name,
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(days=1),
            now + timedelta(days=1),
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "issuer.pem").write_bytes(
        private + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "issuer.pem")
    return context


async def test_unknown_certificate_is_refused(tmp_path: Path) -> None:
    """Over TLS the issuer needs a trusted certificate; no request is sent to another."""
    async with run_issuer(respond_with(KEY_SET), create_tls_context(tmp_path)) as running:
        with pytest.raises(JwksUnavailable):
            await create_verifier(running.url).verify(GOOD)

    assert running.requests == []
