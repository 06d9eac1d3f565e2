"""What routes ask for: the rooms of this service, and who is asking.

Every route that is not for everybody says with one of the annotations below which role and which scope it takes; a test
goes through all of them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.core.answering.answers import Answers
from service.core.auth.authenticator import Door
from service.core.auth.credentials import Given
from service.core.auth.origin import check_session
from service.core.auth.principals import Principal, Role, Scope
from service.core.auth.revocation import Watch
from service.core.database.engine import Database
from service.core.documents.library import ChunkWorkers
from service.core.ports import RecordQueue, Tickets, Worker
from service.core.quota.local import Ledger
from service.core.search.service import Retrieval
from service.core.settings import Settings
from service.core.telemetry import Metrics

COOKIE, SECURE_COOKIE = "kotae", "__Host-kotae"  # the second where there is TLS


@dataclass(frozen=True)
class Rooms:
    """Everything that a route may use; made once, in `service.main`."""

    settings: Settings
    database: Database
    queue: RecordQueue
    workers: Mapping[str, Worker]
    chunk_workers: ChunkWorkers
    door: Door
    watch: Watch
    quota: Ledger
    answers: Answers
    retrieval: Retrieval
    tickets: Tickets
    metrics: Metrics


async def rooms(request: Request) -> Rooms:
    """The rooms, from the lifespan's state."""
    found: Rooms = request.state.rooms
    return found


def may(role: Role, scope: Scope | None) -> Callable[[Request], Awaitable[Principal]]:
    """The principal of a request, if it has this role and scope; any scope will do for None.

    The dependency raises `Unauthorized`, `Forbidden` or `ForeignOrigin`.
    """

    async def principal(request: Request) -> Principal:
        found: Principal = await request.state.rooms.door.admit(given(request))
        if found.credential.startswith("session:"):
            headers = request.headers
            check_session(
                method=request.method,
                origin=headers.get("origin"),
                fetch_site=headers.get("sec-fetch-site"),
                accept=headers.get("accept", ""),
            )
        if scope is not None:
            found.require(role, scope)
        return found

    principal.requires = (role, scope)  # type: ignore[attr-defined]  # what the matrix of routes is made from
    return principal


def given(request: Request) -> Given:
    """The credentials that a request carries."""
    headers = request.headers
    name = SECURE_COOKIE if request.scope["scheme"] == "https" else COOKIE
    return Given(
        authorization=headers.getlist("authorization"),
        api_key=headers.getlist("x-api-key"),
        session=request.cookies.get(name) if "cookie" in headers else None,
    )


RoomsDep = Annotated[Rooms, Depends(rooms)]
Whoever = Annotated[Principal, Depends(may(Role.USER, None))]
Asking = Annotated[Principal, Depends(may(Role.USER, Scope.ASK))]
Reading = Annotated[Principal, Depends(may(Role.USER, Scope.LOGS))]
Documenting = Annotated[Principal, Depends(may(Role.USER, Scope.DOCUMENTS))]
Keying = Annotated[Principal, Depends(may(Role.USER, Scope.KEYS))]
AdminReading = Annotated[Principal, Depends(may(Role.ADMIN, Scope.LOGS))]
AdminDocumenting = Annotated[Principal, Depends(may(Role.ADMIN, Scope.DOCUMENTS))]
AdminKeying = Annotated[Principal, Depends(may(Role.ADMIN, Scope.KEYS))]
