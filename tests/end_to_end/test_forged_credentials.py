"""Forged credentials: none is accepted, none causes a server error, and none is remembered."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials, parse_header_credential
from service.core.auth.jwts import JwtVerifier, create_token
from service.core.auth.principals import Role
from service.core.database.engine import Database
from service.core.errors import Unauthorized
from service.core.settings import Settings
from tests.access import SECRET as BOOTSTRAP_SECRET
from tests.access import create_key
from tests.attacks.measure import memory_of
from tests.conftest import Serve
from tests.fuzz.credentials import AUDIENCE, ISSUER, SECRET, CredentialFuzzer
from tests.http_server.raw import RawClient

OPTIONS: dict[str, Any] = {
    "auth": "keys",
    "secret": SecretStr(BOOTSTRAP_SECRET),
    "jwt_algorithm": "HS256",
    "jwt_secret": SecretStr(SECRET),
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
}
MEGABYTE = 1_000_000
AT_ONCE = 50


def create_fuzzer(settings: Settings, keys: Sequence[str]) -> CredentialFuzzer:
    """Create a fuzzer that knows valid credentials, which it never returns unchanged."""
    token = create_token(settings, "alice", role=Role.USER, seconds=3600)
    valid = [*keys, BOOTSTRAP_SECRET, token]

    def is_valid(value: bytes) -> bool:
        try:
            headers = Credentials(authorization=[value.decode("latin-1")])
            return parse_header_credential(headers) in valid
        except Unauthorized:
            return False

    return CredentialFuzzer(valid, is_valid)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [
        10_000,
        pytest.param(1_000_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
    ],
)
async def test_no_forged_header_is_accepted(database: Database, count: int) -> None:
    """Every header is `Unauthorized`; memory and caches do not grow with their number."""
    settings = Settings(_env_file=None, **OPTIONS)
    key = await create_key(database)
    authenticator = Authenticator(settings, database, jwts=JwtVerifier(settings))
    fuzzer = create_fuzzer(settings, [str(key.key)])

    async def is_refused(value: bytes) -> bool:
        try:
            await authenticator.authenticate(Credentials(authorization=[value.decode("latin-1")]))
        except Unauthorized:
            return True
        return False

    before = 0
    for begun in range(0, count, AT_ONCE):
        values = [fuzzer.create() for _ in range(AT_ONCE)]
        refused = await asyncio.gather(*map(is_refused, values))
        assert all(refused), [
            value for value, known in zip(values, refused, strict=True) if not known
        ]
        if begun == count // 5 // AT_ONCE * AT_ONCE:
            before = memory_of(os.getpid())
    assert len(authenticator) == 0
    assert memory_of(os.getpid()) - before < 10 * MEGABYTE


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [1_000, pytest.param(50_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])],
)
async def test_forged_headers_over_http(serve: Serve, count: int) -> None:
    """Over sockets, every header is a 401, or a 400 or 431 if it is no header, never a 500."""
    service = await serve(**OPTIONS)
    key = await create_key(service.services.database)
    fuzzer = create_fuzzer(service.services.settings, [str(key.key)])

    async def send(value: bytes) -> int:
        client = await RawClient.connect(service)
        await client.send(
            b"GET /ai/logs?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: " + value + b"\r\n\r\n"
        )
        (reply,) = await client.receive_all()
        await client.close()
        return reply.status

    statuses = set[int]()
    for _ in range(0, count, AT_ONCE):
        statuses |= set(await asyncio.gather(*(send(fuzzer.create()) for _ in range(AT_ONCE))))
    accepted = await service.client.get("/ai/logs", headers={"Authorization": f"Bearer {key.key}"})

    assert 401 in statuses
    assert statuses <= {400, 401, 431}
    assert accepted.status_code == 200
