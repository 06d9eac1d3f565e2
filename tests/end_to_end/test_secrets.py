"""Secrets in a provider's responses do not reach callers, rows or the log."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import Behaviour, ProviderFake
from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow

KEY = "c0rrect h0rse-b4ttery/staple+42"  # of no known form
FOREIGN_KEY = "sk-live-0123456789abcdef"
PASSWORD = "hunter2-hunter2"
ENCODED = base64.b64encode(KEY.encode()).decode()
SECRETS = (KEY, FOREIGN_KEY, PASSWORD, ENCODED[:-2])
BODY: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
LEAK = (
    f"invalid credentials: Authorization: Bearer {KEY}\nsent {KEY!r} and {FOREIGN_KEY} to "
    f"https://kotae:{PASSWORD}@gateway.example/v1 (Basic {ENCODED})"
)
STATUSES = (300, 400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529)
BY_STATUS = [
    Behaviour(
        status=status,
        error={"message": LEAK, "type": LEAK, "code": KEY, "param": FOREIGN_KEY},
        headers=[("x-echo", FOREIGN_KEY)],
        retry_after=60,
    )
    for status in STATUSES
]
BODIES = (
    json.dumps({"error": LEAK}),
    json.dumps({"message": LEAK, "detail": LEAK}),
    json.dumps({"error": {"message": {"headers": {"authorization": f"Bearer {KEY}"}}}}),
    json.dumps({"error": {"message": "x" * 480 + KEY}}),
    f"<html>{LEAK}</html>",
)
BY_BODY = [Behaviour(status=422, body=body.encode()) for body in BODIES]
IN_STREAM = [
    Behaviour(error_after=2, error={"message": LEAK, "code": KEY}),
    Behaviour(raw_after=2, raw=f"data: {LEAK}\n\n".encode()),
    Behaviour(finish_reason=f"{KEY} {FOREIGN_KEY}"),
]


def find_leaks(text: str) -> list[str]:
    """Return the parts of secrets that occur in a text, also as JSON."""
    parts = [secret[start : start + 8] for secret in SECRETS for start in range(len(secret) - 7)]
    return [part for part in parts if json.dumps(part)[1:-1] in text]


async def collect_outputs(
    service: ServiceProcess, fake: ProviderFake, behaviours: list[Behaviour]
) -> str:
    """Return what a plain and a streamed answer to each behaviour send, and the rows."""
    outputs = ""
    for behaviour in behaviours:
        fake.default = behaviour
        for path in ("/ai/test", "/ai/stream"):
            outputs += (await service.client.post(path, json=BODY)).text
    return outputs + (await service.client.get("/ai/logs", params={"limit": 200})).text


@pytest.mark.parametrize(
    "behaviours", [BY_STATUS, BY_BODY, IN_STREAM], ids=["status", "body", "stream"]
)
async def test_secrets_of_providers_are_redacted(
    tmp_path: Path,
    fake: ProviderFake,
    capfd: pytest.CaptureFixture[str],
    behaviours: list[Behaviour],
) -> None:
    """Error bodies of any status and shape, events and finish reasons are redacted."""
    settings = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": KEY, "KOTAE_MODEL": "m"}
    async with serving(tmp_path, KOTAE_LOG_LEVEL="debug", **settings) as service:
        outputs = await collect_outputs(service, fake, behaviours)
    log = capfd.readouterr().err

    assert len(fake.calls) == 2 * len(behaviours)
    assert "request.served" in log
    assert find_leaks(outputs + log) == []
