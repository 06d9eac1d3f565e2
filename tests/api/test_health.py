"""Health and metrics."""

from tests.conftest import Service
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
