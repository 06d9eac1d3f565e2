"""Two providers over sockets: fallback, weights, prices by attempt, health, and no leaked key."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import audit_log
from service.core.ports import QuotaLimits
from tests.access import bearer, make_key
from tests.command import run
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.sse import collect

KEYS = {"FIRST_KEY": "sk-canary-first-0001", "SECOND_KEY": "sk-canary-second-0002"}
FREE = {"prompt": "Why?", "grounded": False}


@pytest.fixture
async def first() -> AsyncIterator[ProviderFake]:
    """The provider of the first target."""
    async with ProviderFake() as fake:
        yield fake


@pytest.fixture
async def second() -> AsyncIterator[ProviderFake]:
    """The provider of the second target."""
    async with ProviderFake() as fake:
        yield fake


@pytest.fixture
def providers(
    tmp_path: Path, first: ProviderFake, second: ProviderFake, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A file with both providers and three routes."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    targets = [
        {"provider": "first", "model": "small"},
        {"provider": "second", "model": "large"},
    ]
    content = {
        "providers": [
            {
                "name": "first",
                "base_url": first.base_url,
                "key": {"env": "FIRST_KEY"},
                "headers": {"X-Team": "blue"},
                "idle_seconds": 0.5,
                "models": [
                    {"name": "small", "aliases": ["mini"], "price": {"input": "1", "output": "2"}}
                ],
            },
            {
                "name": "second",
                "base_url": second.base_url,
                "key": {"env": "SECOND_KEY"},
                "models": [
                    {
                        "name": "large",
                        "price": {"input": "10", "output": "20"},
                        "max_output_tokens": 20_000,
                    },
                    {"name": "vectors", "embeddings": True, "price": {"input": "3", "output": "0"}},
                ],
            },
        ],
        "routes": [
            {"alias": "chat", "targets": targets},
            {"alias": "always", "targets": targets, "fallback": "always"},
        ],
    }
    file = tmp_path / "providers.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
async def service(serve: Serve, providers: Path) -> Service:
    """A service with both providers."""
    return await serve(providers=providers)


async def read_log(service: Service) -> dict[str, Any]:
    """The complete row of the only answer; the accounts are audited."""
    row = await service.row()
    report = await audit_log(service.services.database, service.services.settings.data_dir)
    assert report.details == []
    response = await service.client.get(f"/ai/logs/{row['id']}")
    assert response.json() | {key: row[key] for key in row} == response.json()
    return dict(response.json())


def price(usage: dict[str, int], input_: int, output: int) -> str:
    """The cost in USD at these prices per million tokens."""
    nano = usage["prompt_tokens"] * input_ * 1000 + usage["completion_tokens"] * output * 1000
    return f"{nano / 1e9:.9f}".rstrip("0")


async def test_the_first_target_answers(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """One attempt: the row has its provider and model, and there is no list of attempts."""
    response = await service.client.post("/ai/test", json=FREE | {"model": "chat"})

    row = await read_log(service)
    assert (row["model"], row["provider"], row["provider_model"]) == ("chat", "first", "small")
    assert row["estimated_cost"] == price(first.calls[0].usage, 1, 2)
    assert "attempt_list" not in row
    assert second.calls == []
    assert first.calls[0].body["model"] == "small"
    assert first.calls[0].headers["authorization"] == f"Bearer {KEYS['FIRST_KEY']}"
    assert first.calls[0].headers["x-team"] == "blue"
    assert response.json()["provider"] == "first"


async def test_the_second_target_answers_without_a_connection(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """An attempt without a connection used nothing."""
    async with first.away():
        response = await service.client.post("/ai/test", json=FREE | {"model": "chat"})

    assert response.status_code == 200
    failed, _ = (await read_log(service))["attempt_list"]
    assert (failed["error_code"], failed["usage_source"]) == ("provider_unreachable", "none")
    assert (failed["unbilled"], failed["estimated_cost"]) == (True, "0")


@pytest.mark.parametrize("path", ["/ai/test", "/ai/stream"])
@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(status=429, retry_after=60),
        Behaviour(status=503, body=b""),
        Behaviour(status=500),
    ],
    ids=["429", "503", "500"],
)
async def test_the_second_target_answers_what_was_not_billed(
    service: Service, first: ProviderFake, second: ProviderFake, behaviour: Behaviour, path: str
) -> None:
    """After a failure that was not billed the other provider answers, at its own price."""
    first.next(behaviour)
    response = await service.client.post(path, json=FREE | {"model": "chat"})

    assert response.status_code == 200
    row = await read_log(service)
    failed, answered = row["attempt_list"]
    assert (row["attempts"], row["provider"], row["provider_model"]) == (2, "second", "large")
    assert (failed["provider"], failed["model"], failed["unbilled"]) == ("first", "small", True)
    assert (failed["usage_source"], failed["estimated_cost"]) == ("unknown", None)
    assert failed["error_code"].startswith("provider_")
    assert (answered["provider"], answered["error_code"]) == ("second", None)
    assert row["estimated_cost"] == answered["estimated_cost"]
    assert row["estimated_cost"] == price(second.calls[0].usage, 10, 20)
    assert failed["started_at"] <= failed["ended_at"] <= answered["started_at"]


async def test_what_may_have_been_billed_is_part_of_the_account(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """With `fallback = "always"` a timeout is followed by the other provider, and is estimated."""
    first.next(Behaviour(hang_after="request"))
    response = await service.client.post("/ai/test", json=FREE | {"model": "always"})

    assert response.status_code == 200
    row = await read_log(service)
    failed, answered = row["attempt_list"]
    assert (failed["status"], failed["usage_source"], failed["unbilled"]) == (
        "timeout",
        "estimated",
        False,
    )
    assert (row["usage_source"], row["status"]) == ("estimated", "completed")
    for name in ("prompt_tokens", "completion_tokens"):
        assert row[name] == failed[name] + answered[name]
    assert failed["prompt_tokens"] > 0
    assert float(row["estimated_cost"]) == pytest.approx(
        float(failed["estimated_cost"]) + float(answered["estimated_cost"])
    )


async def test_a_timeout_ends_the_answer_by_default(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """What may have been billed is not repeated implicitly."""
    first.next(Behaviour(hang_after="request"))
    response = await service.client.post("/ai/test", json=FREE | {"model": "chat"})

    assert (response.status_code, response.json()["code"]) == (504, "provider_timeout")
    assert second.calls == []
    assert (await read_log(service))["usage_source"] == "unknown"


@pytest.mark.parametrize("model", ["chat", "always"])
async def test_nothing_falls_back_after_text(
    service: Service, first: ProviderFake, second: ProviderFake, model: str
) -> None:
    """An answer that breaks off after some text ends there."""
    first.next(Behaviour(cut_after=2))
    async with service.client.stream("POST", "/ai/stream", json=FREE | {"model": model}) as stream:
        assert (await collect(stream))[-1].name == "failure"

    assert second.calls == []
    assert (await read_log(service))["attempts"] == 1


async def test_a_failed_provider_is_avoided(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """During its cool-down a route begins with the other provider; health and metrics show it."""
    first.next(Behaviour(status=429, retry_after=60))
    for _ in range(3):
        await service.client.post("/ai/test", json=FREE | {"model": "chat"})
    health = (await service.client.get("/health/ready")).json()
    metrics = (await service.client.get("/metrics")).text

    assert (len(first.calls), len(second.calls)) == (1, 3)
    assert health["providers"]["first"]["state"] == "cooling"
    assert health["providers"]["first"]["reason"] == "provider_busy"
    assert health["providers"]["second"]["state"] == "ok"
    assert health["status"] == "ready"
    for line in (
        'kotae_provider_up{provider="first"} 0.0',
        'kotae_provider_up{provider="second"} 1.0',
        'kotae_provider_attempts_total{code="provider_busy",provider="first"} 1.0',
        'kotae_provider_fallbacks_total{code="provider_busy",provider="first"} 1.0',
    ):
        assert line in metrics


async def test_models_of_all_providers_are_listed(service: Service) -> None:
    """`/v1/models` has the models, aliases and routes, and `/v1/embeddings` finds the provider."""
    ids = [model["id"] for model in (await service.client.get("/v1/models")).json()["data"]]

    assert ids[:6] == ["chat", "always", "small", "mini", "large", "extractive"]
    assert {"kotae/chat", "kotae/mini", "vectors"} <= {*ids}
    assert "kotae/vectors" not in ids
    unknown = await service.client.post("/ai/test", json=FREE | {"model": "other"})
    assert unknown.json()["code"] == "unknown_model"
    assert (await service.client.post("/ai/test", json=FREE | {"model": "vectors"})).json()[
        "code"
    ] == "unknown_model"


async def test_embeddings_go_to_the_provider_of_their_model(
    service: Service, first: ProviderFake, second: ProviderFake
) -> None:
    """The call is priced at that provider's model."""
    body = {"model": "vectors", "input": "Hello", "encoding_format": "float"}
    response = await service.client.post("/v1/embeddings", json=body)

    row = await read_log(service)
    assert response.status_code == 200
    assert (first.embedded, len(second.embedded)) == ([], 1)
    assert (row["provider"], row["endpoint"]) == ("second", "/v1/embeddings")
    assert row["estimated_cost"] == price(row, 3, 0)


async def test_the_hold_covers_every_target(serve: Serve, providers: Path) -> None:
    """A quota that suffices for the cheap model only refuses the route, before any call."""
    service = await serve(providers=providers, auth="keys", secret="a" * 32)
    limits = QuotaLimits(cost_nano_usd_per_day=2_000_000)
    key = await make_key(service, "u", limits=limits)
    ask = FREE | {"max_tokens": 500}

    cheap = await service.client.post(
        "/ai/test", json=ask | {"model": "small"}, headers=bearer(key)
    )
    route = await service.client.post("/ai/test", json=ask | {"model": "chat"}, headers=bearer(key))

    assert (cheap.status_code, route.status_code) == (200, 400)
    assert route.json()["code"] == "beyond_quota"


async def test_keys_reach_their_own_provider_only(
    service: Service, first: ProviderFake, second: ProviderFake, capfd: pytest.CaptureFixture[str]
) -> None:
    """No log line, response or row has a key, also if the provider repeats it in its error."""
    message = f"invalid key {KEYS['FIRST_KEY']}".encode()
    first.next(Behaviour(status=401, body=b'{"error":{"message":"' + message + b'"}}'))
    texts = [
        (await service.client.post("/ai/test", json=FREE | {"model": "chat"})).text,
        (await service.client.get("/health/ready")).text,
        (await service.client.get("/metrics")).text,
        (await service.client.get("/v1/models")).text,
        json.dumps(await read_log(service)),
        "".join(capfd.readouterr()),
        repr(service.services.settings),
    ]

    assert not any("canary" in text for text in texts)
    assert all("canary-second" not in str(call.headers) for call in first.calls)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    service: Service, first: ProviderFake, second: ProviderFake, status: int
) -> None:
    """A redirect would carry the key to another host; it is an error."""
    headers = [("location", f"{second.base_url}/chat/completions")]
    first.next(Behaviour(status=status, body=b"", headers=headers))
    response = await service.client.post("/ai/test", json=FREE | {"model": "small"})

    assert response.status_code == 502
    assert second.calls == []


CHAT = {"messages": [{"role": "user", "content": "Why?"}]}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_chat_completions_fall_back(
    service: Service, first: ProviderFake, second: ProviderFake, stream: bool
) -> None:
    """The OpenAI protocol uses the same routes; the second provider gets its own model."""
    first.next(Behaviour(status=503, body=b""))
    response = await service.client.post(
        "/v1/chat/completions", json=CHAT | {"model": "chat", "stream": stream}
    )

    assert response.status_code == 200
    assert second.calls[0].body["model"] == "large"
    row = await read_log(service)
    assert [attempt["model"] for attempt in row["attempt_list"]] == ["small", "large"]


@pytest.mark.parametrize(("model", "retry"), [("chat", "true"), ("always", "false")])
async def test_clients_repeat_only_what_was_not_billed(
    service: Service, first: ProviderFake, second: ProviderFake, model: str, retry: str
) -> None:
    """If an earlier attempt may have been billed, a later rejection does not make a retry free."""
    busy = Behaviour(status=503, retry_after=60)
    first.next(Behaviour(cut_after="request") if model == "always" else busy)
    second.next(busy)
    response = await service.client.post("/v1/chat/completions", json=CHAT | {"model": model})

    assert (response.status_code, response.headers["x-should-retry"]) == (503, retry)


async def test_a_replayed_answer_has_its_attempts(
    serve: Serve, providers: Path, first: ProviderFake
) -> None:
    """An answer that is read again from the log is the same, with all attempts."""
    service = await serve(providers=providers, resume_seconds=0)
    first.next(Behaviour(status=503, body=b""))
    ask = FREE | {"model": "chat"}
    answers = []
    for _ in range(2):
        answers.append(
            await service.client.post("/ai/test", json=ask, headers={"Idempotency-Key": "key-1"})
        )
        await service.wait_idle()

    assert answers[1].headers["idempotent-replayed"] == "true"
    assert answers[0].json() == answers[1].json()
    assert len(answers[0].json()["attempt_list"]) == 2


async def test_erasure_keeps_attempts(service: Service, first: ProviderFake) -> None:
    """The texts of a conversation are erased; its account, with all attempts, is not."""
    first.next(Behaviour(status=503, body=b""))
    answer = (await service.client.post("/ai/test", json=FREE | {"model": "chat"})).json()
    await service.wait_idle()
    await service.client.delete(f"/ai/conversations/{answer['conversation_id']}")

    row = await read_log(service)
    assert (row["prompt"], row["erased_at"] is None) == ("", False)
    assert row["attempt_list"] == answer["attempt_list"]


async def test_a_damaged_attempt_affects_its_answer_only(
    service: Service, first: ProviderFake
) -> None:
    """A list whose attempts cannot all be read names the damaged ones."""
    first.next(Behaviour(status=503, body=b""), Behaviour(status=503, body=b""))
    for _ in range(2):
        await service.client.post("/ai/test", json=FREE | {"model": "chat"})
        first_route = service.services.routes.find_chat_route("chat").targets[0]
        first_route.endpoint.health.record_success()
    rows = await service.rows()
    async with service.services.database.transaction() as session:
        await session.execute(
            sa.text(
                "UPDATE attempts SET usage_source = 'x', started_at = 'y' WHERE answer_id = :id"
            ),
            {"id": rows[0]["id"]},
        )

    damaged, whole = await service.rows()
    assert (damaged["damaged"], damaged["attempt_list"]) == (["attempt_list"], None)
    assert whole == rows[1]
    single = await service.client.get(f"/ai/logs/{damaged['id']}")
    assert single.json()["damaged"] == ["attempt_list"]


async def test_the_doctor_checks_each_provider(
    providers: Path, tmp_path: Path, first: ProviderFake
) -> None:
    """A provider that is away, and models that one does not have, are reported by name."""
    async with first.away():
        code, out = await run(
            "doctor", KOTAE_DATA_DIR=str(tmp_path), KOTAE_PROVIDERS=str(providers), **KEYS
        )

    assert code == 1
    assert "BAD  provider first (http" in out
    assert "check base_url (with its /v1), key and headers in providers.json" in out
    assert re.search(r"provider second .*without 'large', 'vectors'", out)
    assert "canary" not in out


@pytest.mark.parametrize(("model", "limit"), [("large", 20_000), ("chat", None)])
async def test_a_completion_without_a_limit_gets_that_of_the_model(
    service: Service, first: ProviderFake, second: ProviderFake, model: str, limit: int | None
) -> None:
    """The limit of the file is requested; of a route that every target can generate."""
    expected = limit or service.services.settings.max_tokens_max
    response = await service.client.post(
        "/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": "Why?"}]},
    )

    assert response.headers["x-kotae-max-tokens"] == str(expected)
    assert [call.body["max_tokens"] for call in (*first.calls, *second.calls)] == [expected]
