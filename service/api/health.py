"""Whether the process lives, whether it can do its work, and its metrics."""

from fastapi import APIRouter, Request, Response

from service.api.dependencies import AdminReading, Rooms, RoomsDep
from service.api.responses import json_response
from service.core.errors import DatabaseUnavailable

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> Response:
    """The process answers."""
    return json_response({"status": "live"})


@router.get("/health/ready", responses={503: {"description": "Not now: starting, or stopping"}})
async def ready(request: Request) -> Response:
    """`ready`; `degraded` (200: answers go on, rows are late); `stopping` (503)."""
    rooms: Rooms = request.state.rooms
    queue, answers = rooms.queue.statistics(), rooms.answers.statistics()
    database = "ok"
    try:
        await rooms.database.ping()
    except DatabaseUnavailable as error:
        database = error.detail
    degraded = database != "ok" or any(worker.degraded() for worker in rooms.workers.values())
    status = "stopping" if answers.stopping else "degraded" if degraded else "ready"
    workers = {name: worker.statistics() for name, worker in rooms.workers.items()}
    body = {"status": status, "model": rooms.settings.default_model, "database": database, "queue": queue, "answers": answers, **workers}
    return json_response(body, 503 if answers.stopping else 200)


@router.get("/metrics")
async def metrics(rooms: RoomsDep, _: AdminReading) -> Response:
    """Prometheus metrics."""
    rooms.metrics.in_progress.set(rooms.answers.statistics().in_progress)
    rooms.metrics.records_waiting.set(rooms.queue.statistics().waiting)
    return Response(rooms.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
