"""Health and metrics."""

from service.core.auth.principals import Role, Scope
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.problems import is_problem
from tests.rows import away

ASK = {"prompt": "Why?", "grounded": False}


async def test_health_and_metrics(service: Service) -> None:
    """Liveness, readiness with the state of its parts, and request metrics."""
    await service.client.post("/ai/test", json=ASK)
    ready = await service.client.get("/health/ready")
    metrics = (await service.client.get("/metrics")).text

    assert (await service.client.get("/health/live")).json() == {"status": "live"}
    assert (ready.status_code, ready.json()["status"], ready.json()["database"]) == (
        200,
        "ready",
        "ok",
    )
    assert (
        'kotae_answers_total{endpoint="/ai/test",status="completed",usage_source="provider"} 1.0'
        in metrics
    )
    assert 'kotae_http_requests_total{method="POST",route="/ai/test",status="200"} 1.0' in metrics


async def test_ready_reports_stopping(service: Service) -> None:
    """After the first signal the service is not ready and refuses new answers."""
    service.services.answers.refuse_new()
    response = await service.client.get("/health/ready")

    assert (response.status_code, response.json()["status"]) == (503, "stopping")
    assert (
        is_problem(await service.client.post("/ai/test", json=ASK), 503, "shutting_down")[
            "retry_after"
        ]
        == 2
    )


async def test_ready_reports_an_unavailable_database(service: Service) -> None:
    """Without the database the service is degraded: answers continue, readiness names the error."""
    with away(service.services.database):
        ready = await service.client.get("/health/ready")
        answer = await service.client.post("/ai/test", json=ASK)
    back = await service.client.get("/health/ready")

    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["database"] != "ok"
    assert answer.status_code == 200
    assert back.json()["database"] == "ok"


async def test_only_admins_read_the_statistics(serve: Serve) -> None:
    """Without an admin's credential for logs, readiness consists of states; none is refused."""
    service = await serve(auth="keys")
    strangers = [
        None,
        "kt_invalid",
        await make_key(service, "alice"),
        await make_key(service, "root", Role.ADMIN, scopes=frozenset({Scope.ASK})),
    ]
    states = {
        "status": "ready",
        "model": service.services.settings.default_model,
        "database": "ok",
        "degraded": [],
    }
    for credential in strangers:
        async with client(service, credential) as caller:
            assert (await caller.get("/health/ready")).json() == states
    async with client(service, await make_key(service, "root", Role.ADMIN)) as admin:
        report = (await admin.get("/health/ready")).json()
    assert {"queue", "answers", *service.services.workers} <= report.keys()


async def test_strangers_do_not_read_error_messages(serve: Serve) -> None:
    """Without a credential, the state of the database has no message of the driver."""
    service = await serve(auth="keys")
    async with client(service) as stranger:
        with away(service.services.database):
            unavailable = (await stranger.get("/health/ready")).json()
        service.services.database.report_damage("Tree 7 page 9: out of order")
        damaged = (await stranger.get("/health/ready")).json()

    assert (unavailable["status"], unavailable["database"]) == ("degraded", "unavailable")
    assert (damaged["database"], damaged["degraded"]) == ("damaged", ["integrity"])
