"""Liveness, readiness and metrics."""

import msgspec
from fastapi import APIRouter, Request, Response

from service import __version__
from service.api.dependencies import MetricsPrincipal, Services, ServicesDep, require_metrics
from service.api.responses import json_response
from service.api.schemas import REFUSALS, schema_ref
from service.api.shapes import Liveness, Readiness
from service.core.errors import DatabaseUnavailable, KotaeError

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
    """`ready`; `degraded` (200: answers continue, log rows are late); `stopping` (503).

    Statistics and error messages are for those who may read `/metrics`.
    """
    services: Services = request.state.services
    answers = services.answers.statistics()
    database, error = "ok", ""
    try:
        await services.database.ping()
        if damage := services.database.damage:
            database, error = "damaged", damage
    except DatabaseUnavailable as unavailable:
        database, error = "unavailable", unavailable.detail
    degraded = [name for name, worker in services.workers.items() if worker.degraded()]
    status = "degraded" if degraded or database != "ok" else "ready"
    body: dict[str, object] = {
        "status": "stopping" if answers.stopping else status,
        "model": services.settings.default_model,
        "database": database,
        "degraded": degraded,
    }
    if await _may_read_statistics(request):
        body |= {"version": __version__, "database": error or database}
        body |= {"queue": services.queue.statistics(), "answers": answers}
        body |= {"providers": services.routes.statistics()}
        body |= {name: worker.statistics() for name, worker in services.workers.items()}
    return json_response(body, 503 if answers.stopping else 200)


async def _may_read_statistics(request: Request) -> bool:
    """Whether the caller may read metrics. A missing or invalid credential is no error."""
    try:
        await require_metrics(request)
    except KotaeError:
        return False
    return True


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
    _update_replica_metrics(services)
    for name, provider in services.routes.statistics().items():
        services.metrics.provider_up.labels(name).set(provider.failures == 0)
    services.metrics.rows_damaged.set(services.database.damaged_rows)
    return Response(
        services.metrics.format_exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


def _update_replica_metrics(services: Services) -> None:
    """Set the metrics of a replica from its membership, which is absent with SQLite."""
    if (member := services.workers.get("membership")) is not None:
        values = msgspec.structs.asdict(member.statistics())
        metrics = services.metrics
        metrics.replica_slot.set(values["slot"])
        metrics.replica_lease.set(values["lease"])
        metrics.replica_leader.set(values["leader"])
        metrics.replicas.set(values["replicas"])
