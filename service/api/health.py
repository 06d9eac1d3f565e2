"""Liveness, readiness and metrics."""

from fastapi import APIRouter, Request, Response

from service.api.dependencies import MetricsPrincipal, Services, ServicesDep
from service.api.responses import json_response
from service.api.schemas import REFUSALS, schema_ref
from service.api.shapes import Liveness, Readiness
from service.core.errors import DatabaseUnavailable

router = APIRouter(tags=["health"])


@router.get("/health/live", responses={200: schema_ref(Liveness, "Live")})
async def get_liveness() -> Response:
    """The process responds."""
    return json_response({"status": "live"})


@router.get(
    "/health/ready",
    responses={
        200: schema_ref(Readiness, "Ready or degraded"),
        503: schema_ref(Readiness, "Starting or stopping"),
    },
)
async def get_readiness(request: Request) -> Response:
    """`ready`; `degraded` (200: answers continue, log rows are late); `stopping` (503)."""
    services: Services = request.state.services
    queue, answers = services.queue.statistics(), services.answers.statistics()
    database = "ok"
    try:
        await services.database.ping()
        database = services.database.damage or "ok"
    except DatabaseUnavailable as error:
        database = error.detail
    degraded = database != "ok" or any(worker.degraded() for worker in services.workers.values())
    status = "stopping" if answers.stopping else "degraded" if degraded else "ready"
    workers = {name: worker.statistics() for name, worker in services.workers.items()}
    body = {
        "status": status,
        "model": services.settings.default_model,
        "database": database,
        "queue": queue,
        "answers": answers,
        **workers,
    }
    return json_response(body, 503 if answers.stopping else 200)


@router.get(
    "/metrics",
    responses={
        200: {
            "description": "The Prometheus text format",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **REFUSALS,
    },
    response_class=Response,
)
async def get_metrics(services: ServicesDep, _: MetricsPrincipal) -> Response:
    """Prometheus metrics."""
    services.metrics.in_progress.set(services.answers.statistics().in_progress)
    services.metrics.records_waiting.set(services.queue.statistics().waiting)
    services.metrics.rows_damaged.set(services.database.damaged_rows)
    return Response(
        services.metrics.format_exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
