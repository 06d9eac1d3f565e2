"""The edge: problems, sources, limits, credentials, documents of the routes."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from service.core.auth.origin import check_source
from service.core.errors import ForeignHost, ForeignOrigin
from service.core.settings import Settings
from service.main import create_app
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake

ASK = {"prompt": "Why?", "grounded": False}
SECRET = "0123456789abcdef0123456789abcdef"  # long enough, and nobody's


def is_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that a response is this problem, whole, and return it."""
    problem: dict[str, Any] = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail"} <= problem.keys()
    return problem


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/nope", {}, 404, "not_found"),
        ("PUT", "/ai/test", {}, 405, "method_not_allowed"),
        ("POST", "/ai/test", {"content": b"{"}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": {}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": {"prompt": "  \n"}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"api_base": "http://evil.test"}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"temperature": 3}}, 422, "invalid_request"),
        ("POST", "/ai/test", {"json": ASK | {"prompt": "x" * 20_001}}, 413, "too_large"),
        ("POST", "/ai/test", {"json": ASK | {"max_tokens": 10_000}}, 413, "too_large"),
        ("POST", "/ai/test", {"content": b"x" * 500_000}, 413, "too_large"),
        ("POST", "/ai/stream", {"json": {}}, 422, "invalid_request"),
        ("GET", "/ai/stream", {}, 422, "invalid_request"),
        ("GET", "/ai/documents/x", {}, 404, "not_found"),
        ("DELETE", "/ai/documents/x", {}, 404, "not_found"),
        ("GET", "/ai/logs?since=yesterday", {}, 422, "invalid_request"),
        ("POST", "/ai/upload", {"content": b"x"}, 422, "invalid_request"),
        ("POST", "/ai/upload", {"json": {"text": " "}}, 422, "invalid_request"),
    ],
)  # fmt: skip
async def test_every_refusal_is_a_problem(
    service: Service, fake: ProviderFake, method: str, path: str, sent: dict[str, Any], status: int, code: str
) -> None:
    """Whatever refuses a request, the answer is application/problem+json with its code, and no provider is called."""
    if "content" in sent and path != "/ai/upload":
        sent = sent | {"headers": {"Content-Type": "application/json"}}

    is_problem(await service.client.request(method, path, **sent), status, code)
    assert fake.calls == []


async def test_a_mistake_is_named_and_not_repeated(service: Service) -> None:
    """A validation problem says where and what, without what was sent."""
    response = await service.client.post("/ai/test", json=ASK | {"max_tokens": "hunter2"})

    assert is_problem(response, 422, "invalid_request")["errors"][0]["where"] == "body.max_tokens"
    assert "hunter2" not in response.text


async def test_a_body_without_length_is_counted(service: Service) -> None:
    """A chunked body is refused as soon as it is too long."""

    async def endless() -> Any:
        for _ in range(10_000):
            yield b" " * 1000

    response = await service.client.post("/ai/test", content=endless(), headers={"Content-Type": "application/json"})

    is_problem(response, 413, "too_large")


async def test_a_fault_of_ours_is_a_problem_without_its_cause(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception gives a 500 problem that tells nothing but the request id."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("the secret is hunter2")

    monkeypatch.setattr(type(service.rooms.answers), "answer", broken)
    response = await service.client.post("/ai/test", json=ASK)

    is_problem(response, 500, "internal")
    assert "hunter2" not in response.text


async def test_a_request_id_is_kept_if_it_is_one(service: Service) -> None:
    """A caller's id is used in the answer and the row; one that could forge a log line is not."""
    mine = (await service.client.post("/ai/test", json=ASK, headers={"X-Request-ID": "trace-1.2_3"})).json()["request_id"]
    other = (await service.client.post("/ai/test", json=ASK, headers={"X-Request-ID": "a b\tc"})).json()["request_id"]

    assert mine == "trace-1.2_3"
    assert re.fullmatch(r"[0-9a-f-]{36}", other)


HOSTS = [
    "evil.test",
    "evil.test:8000",
    "127.0.0.1.evil.test",
    "127.0.0.1@evil.test",
    "x/?",
    "x#",
    "localhost/x",
    "",
    "[::1].evil.test",
    "0x7f.1",
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_foreign_host_is_refused(host: str) -> None:
    """In open mode only loopback names are answered to, however the header is spelt."""
    with pytest.raises(ForeignHost):
        check_source(Settings(), host=host, origin=None, fetch_site=None, page=False)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "127.1.2.3"])
def test_a_loopback_host_is_served(host: str) -> None:
    """Every way to name this machine works."""
    check_source(Settings(), host=host, origin=None, fetch_site=None, page=False)


@pytest.mark.parametrize(
    ("origin", "fetch_site"),
    [
        ("http://evil.test", None),
        ("null", "cross-site"),
        (None, "cross-site"),
        (None, "same-site"),
        ("http://localhost:3000", "same-site"),
        ("https://x@localhost:8000", None),
    ],
)
def test_a_page_of_another_origin_is_refused(origin: str | None, fetch_site: str | None) -> None:
    """A page that is not ours cannot use this service through the user's browser, not even one of this machine."""
    with pytest.raises(ForeignOrigin):
        check_source(Settings(), host="localhost:8000", origin=origin, fetch_site=fetch_site, page=False)


def test_own_pages_allowed_origins_and_links_are_served() -> None:
    """Our own page, a page of an allowed origin, and a link to our page from anywhere."""
    settings = Settings(allowed_origins=["https://app.example"])
    check_source(settings, host="localhost:8000", origin="http://localhost:8000", fetch_site="same-origin", page=False)
    check_source(settings, host="localhost:8000", origin="https://app.example", fetch_site="cross-site", page=False)
    check_source(settings, host="localhost:8000", origin=None, fetch_site="cross-site", page=True)


async def test_a_foreign_host_reaches_nothing(service: Service, fake: ProviderFake) -> None:
    """A rebound DNS name is a 400 problem on every route."""
    for path in ("/", "/ai/logs", "/health/live", "/docs", "/web/app.js"):
        is_problem(await service.client.get(path, headers={"Host": "evil.test"}), 400, "foreign_host")
    is_problem(await service.client.post("/ai/test", json=ASK, headers={"Origin": "http://evil.test"}), 403, "foreign_origin")
    assert fake.calls == []


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer x", f"Bearer {SECRET[:-1]}", "Bearer ' OR '1'='1", "Basic !", f"Digest {SECRET}", "Basic Og==", "Bearer"],
)
async def test_with_a_secret_every_route_but_health_wants_it(serve: Serve, authorization: str | None) -> None:
    """Without the right secret there is a 401 with a challenge, on every route of the service."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    headers = {"Authorization": authorization} if authorization else {}
    async with httpx2.AsyncClient(base_url=service.url, headers=headers) as stranger:
        for path, methods in create_app(Settings()).openapi()["paths"].items():
            for method in methods:
                if not path.startswith("/health") and (method, path) != ("delete", "/auth/session"):
                    body = ASK if method == "post" else None
                    is_problem(await stranger.request(method.upper(), path + "?prompt=x&q=x", json=body), 401, "unauthorized")
        assert (await stranger.get("/ai/logs")).headers["www-authenticate"] == 'Bearer realm="Kotae"'
        assert (await stranger.get("/health/ready")).status_code == 200


async def test_with_a_secret_bearer_and_basic_are_equal(serve: Serve) -> None:
    """The secret works as a bearer token and as a Basic password, which a browser can send with an EventSource."""
    service = await serve(auth="keys", secret=SecretStr(SECRET), seeded=True)
    assert (await service.client.get("/ai/logs")).status_code == 200
    async with httpx2.AsyncClient(base_url=service.url, auth=("anyone", SECRET)) as browser:
        assert (await browser.get("/ai/stream", params={"prompt": "返品は何日以内にできますか？"})).status_code == 200
        assert (await browser.get("/", headers={"Host": "kotae.example"})).status_code == 200


async def test_secrets_are_in_no_output(serve: Serve, fake: ProviderFake, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Neither the provider's key nor the service's secret reaches logs, problems, metrics or the database."""
    key = "sk-canary-key-1234567890"
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, openai_api_key=key, model="m", log_level="debug"
    )
    said = ""
    for behaviour in (
        Behaviour(),
        Behaviour(status=401, body=f'{{"error": {{"message": "bad key {key}"}}}}'.encode()),
        Behaviour(cut_after="request"),
    ):
        fake.next(behaviour)
        said += (await service.client.post("/ai/test", json=ASK)).text
    said += (await service.client.get("/metrics")).text + (await service.client.get("/health/ready")).text
    await service.rows()
    captured = capfd.readouterr()
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file())

    for canary in (key, SECRET):
        assert canary not in said + captured.out + captured.err
        assert canary.encode() not in stored


async def test_every_response_has_its_headers(service: Service) -> None:
    """No response is cached, sniffed or framed."""
    for path in ("/", "/ai/logs", "/health/live", "/nope", "/docs"):
        headers = (await service.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline' ;" not in headers["content-security-policy"]
        assert ("no-store" in headers["cache-control"]) or ("no-cache" in headers["cache-control"])


async def test_health_and_metrics(service: Service) -> None:
    """Live, ready with the state of its parts, and metrics that count what happened."""
    await service.client.post("/ai/test", json=ASK)
    ready = await service.client.get("/health/ready")
    metrics = (await service.client.get("/metrics")).text

    assert (await service.client.get("/health/live")).json() == {"status": "live"}
    assert (ready.status_code, ready.json()["status"], ready.json()["database"]) == (200, "ready", "ok")
    assert 'kotae_answers_total{endpoint="/ai/test",status="completed",usage_source="provider"} 1.0' in metrics
    assert 'kotae_http_requests_total{method="POST",route="/ai/test",status="200"} 1.0' in metrics


async def test_ready_says_that_it_stops(service: Service) -> None:
    """From the first signal on the service is not ready, and refuses new answers."""
    service.rooms.answers.refuse_new()
    response = await service.client.get("/health/ready")

    assert (response.status_code, response.json()["status"]) == (503, "stopping")
    assert is_problem(await service.client.post("/ai/test", json=ASK), 503, "shutting_down")["retry_after"] == 2


def test_every_route_documents_its_errors() -> None:
    """Each operation declares the problems it may answer with, and each reference in the document leads somewhere."""
    document = create_app(Settings()).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/ai") or path == "/seed":
                assert {"401", "413", "422", "500", "503"} <= operation["responses"].keys(), path
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()


async def test_the_docs_page_loads_nothing_from_elsewhere(service: Service) -> None:
    """Swagger UI comes from the service itself."""
    page = (await service.client.get("/docs")).text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert "//" not in "".join(links)
    for link in links:
        assert (await service.client.get(link)).status_code == 200
    assert (await service.client.get("/openapi.json")).json()["info"]["title"] == "Kotae"


async def test_user_id_is_believed_in_open_mode(service: Service) -> None:
    """In open mode the account goes to whom the body names."""
    await service.client.post("/ai/test", json=ASK | {"user_id": "alice"})

    assert (await service.row())["user_id"] == "alice"


async def test_a_configured_list_of_models_is_a_limit(serve: Serve, fake: ProviderFake) -> None:
    """Only listed models may be named; without a provider only the extractive one answers."""
    service = await serve(openai_base_url=fake.base_url, model="a", models=["b"])
    assert (await service.client.post("/ai/test", json=ASK | {"model": "b"})).status_code == 200
    is_problem(await service.client.post("/ai/test", json=ASK | {"model": "c"}), 400, "unknown_model")


async def test_without_a_provider_only_the_extractive_model_answers(serve: Serve) -> None:
    """A model that nobody serves is a 400 that says what to set."""
    service = await serve()

    assert (
        "OPENAI_API_KEY" in is_problem(await service.client.post("/ai/test", json=ASK | {"model": "gpt-x"}), 400, "unknown_model")["detail"]
    )
