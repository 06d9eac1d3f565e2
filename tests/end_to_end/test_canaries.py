"""Secrets never appear in output, on any error path."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from service.core.auth import store
from service.core.auth.jwts import create_token
from service.core.auth.principals import BOOTSTRAP, Role
from service.core.database.engine import Database
from service.core.ports import QuotaLimits
from service.core.settings import Settings
from tests.access import SECRET, bearer
from tests.conftest import Serve, http_client
from tests.core.auth.test_jwts import HS
from tests.fakes.provider import Behaviour, ProviderFake
from tests.process import ServiceProcess, serving

ASK = {"prompt": "Why?", "grounded": False}
CANARIES = {
    "secret": "canary-of-the-bootstrap-secret-0123456789",
    "jwt": "canary-of-the-shared-jwt-secret-0123456789",
    "provider": "sk-canary-of-the-provider-0123456789",
}


@pytest.mark.slow
async def test_no_secret_leaves_on_any_error_path(
    fake: ProviderFake, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Keys, sessions, JWTs, tickets and configured secrets appear in no output of any refusal."""
    options = {
        "KOTAE_AUTH": "keys",
        "KOTAE_LOG_LEVEL": "debug",
        "KOTAE_SECRET": CANARIES["secret"],
        "KOTAE_JWT_ALGORITHM": "HS256",
        "KOTAE_JWT_SECRET": CANARIES["jwt"],
        "KOTAE_JWT_ISSUER": "i",
        "KOTAE_JWT_AUDIENCE": "a",
        "OPENAI_BASE_URL": fake.base_url,
        "OPENAI_API_KEY": CANARIES["provider"],
        "KOTAE_MODEL": "m",
    }
    async with serving(tmp_path, **options) as service:
        output, secrets = await collect_output(service, fake, tmp_path)
    captured = capfd.readouterr()
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    assert '"status":429' in output
    assert '"status":401' in output
    assert "request.served" in captured.err
    for name, canary in secrets.items():
        assert canary not in captured.out + captured.err, f"{name} in the log"
        assert canary.encode() not in written, f"{name} in a file"
        assert canary not in output, f"{name} in a response"


async def collect_output(
    service: ServiceProcess, fake: ProviderFake, data_dir: Path
) -> tuple[str, dict[str, str]]:
    """Send all kinds of requests; return the responses and the secrets of the requests."""
    database = Database(f"sqlite+aiosqlite:///{data_dir / 'kotae.db'}")
    key = await store.create_key(database, BOOTSTRAP, store.NewKey(user_id="alice"), keys_max=9)
    limited = await store.create_key(
        database, BOOTSTRAP, store.NewKey(user_id="limited"), keys_max=9
    )
    await store.put_user(database, BOOTSTRAP, "limited", limits=QuotaLimits(requests_per_minute=1))
    await database.close()
    jwts = Settings(
        **HS | {"jwt_secret": SecretStr(CANARIES["jwt"]), "jwt_issuer": "i", "jwt_audience": "a"}
    )
    token = create_token(jwts, "bob", Role.USER, 60)
    output = ""

    async def ask(credential: str, method: str, path: str, **sent: Any) -> httpx2.Response:
        nonlocal output
        async with http_client(service.url, headers=bearer(credential)) as caller:
            response = await caller.request(method, path, **sent)
        headers = {name: value for name, value in response.headers.items() if name != "set-cookie"}
        output += f"{headers}{response.text if 'events_url' not in response.text else ''}"
        return response

    for credential in (str(key.key), token, CANARIES["secret"]):
        for behaviour in (
            Behaviour(),
            Behaviour(
                status=401,
                body=f'{{"error": {{"message": "bad key {CANARIES["provider"]}"}}}}'.encode(),
            ),
            Behaviour(status=500),
            Behaviour(cut_after="request"),
            Behaviour(malformed_after=1),
        ):
            fake.next(behaviour)
            await ask(credential, "POST", "/ai/test", json=ASK)
        fake.next(Behaviour(cut_after=2))
        await ask(credential, "POST", "/ai/stream", json=ASK)
        for method, path, sent in (
            ("POST", "/ai/test", {"content": credential}),
            ("POST", "/ai/test", {"json": {"prompt": 1, "key": credential}}),
            ("GET", f"/ai/logs/{credential}", {}),
            ("GET", "/ai/logs", {"params": {"cursor": credential[:60]}}),
            ("GET", f"/{credential}", {}),
            ("PUT", "/ai/test", {}),
            ("POST", "/ai/keys", {"json": {"role": "admin"}}),
            ("GET", "/ai/keys", {}),
            ("GET", "/ai/usage", {}),
            ("GET", "/metrics", {}),
            ("GET", "/health/ready", {}),
        ):
            await ask(credential, method, path, **sent)
        await ask(credential[:-1] + "~", "GET", "/ai/logs")
        async with http_client(
            service.url, headers=bearer(credential) | {"X-API-Key": "other"}
        ) as both:
            output += (await both.get("/ai/logs")).text
    for _ in range(2):
        await ask(str(limited.key), "POST", "/ai/test", json=ASK)
    session = (await ask(str(key.key), "POST", "/auth/session")).cookies["kotae"]
    async with http_client(service.url, cookies={"kotae": session}) as browser:
        output += (await browser.get("/ai/logs")).text + (
            await browser.post("/ai/test", json=ASK)
        ).text
    ticket = (
        (await ask(str(key.key), "POST", "/ai/answers", json=ASK))
        .json()["events_url"]
        .partition("ticket=")[2]
    )
    output += (await service.client.get("/ai/answers/x/events", params={"ticket": ticket})).text
    return output, {
        **CANARIES,
        "key": str(key.key),
        "limited": str(limited.key),
        "token": token,
        "session": session,
        "ticket": ticket,
    }


async def test_secrets_are_in_no_output(
    serve: Serve, fake: ProviderFake, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The provider's key and the service's secret are in no log, problem, metric or table."""
    key = "sk-canary-key-1234567890"
    service = await serve(
        auth="keys",
        secret=SecretStr(SECRET),
        openai_base_url=fake.base_url,
        openai_api_key=key,
        model="m",
        log_level="debug",
    )
    output = ""
    for behaviour in (
        Behaviour(),
        Behaviour(status=401, body=f'{{"error": {{"message": "bad key {key}"}}}}'.encode()),
        Behaviour(cut_after="request"),
    ):
        fake.next(behaviour)
        output += (await service.client.post("/ai/test", json=ASK)).text
    output += (await service.client.get("/metrics")).text + (
        await service.client.get("/health/ready")
    ).text
    await service.rows()
    captured = capfd.readouterr()
    stored = b"".join(
        file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file()
    )

    for canary in (key, SECRET):
        assert canary not in output + captured.out + captured.err
        assert canary.encode() not in stored
