"""What routes ask for: the rooms of this service, and who is asking.

Every route that is not for everybody says with one of the annotations below which role and which scope it takes; a test
goes through all of them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.core.answer import Answers
from service.core.auth.credentials import Given
from service.core.auth.door import Door
from service.core.auth.principals import Principal, Role, Scope
from service.core.auth.watch import Watch
from service.core.db import Database
from service.core.ports import RecordQueue, Tickets, Worker
from service.core.quota.ledger import Ledger
from service.core.retrieval import Retrieval
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


def may(role: Role, scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """The principal of a request, if it has this role and scope. The dependency raises `Unauthorized` or `Forbidden`."""

    async def principal(request: Request) -> Principal:
        found: Principal = await request.state.rooms.door.admit(given(request))
        found.require(role, scope)
        return found

    principal.requires = (role, scope)  # type: ignore[attr-defined]  # what the matrix of routes is made from
    return principal


def given(request: Request) -> Given:
    """The credentials that a request carries."""
    headers, cookies = request.headers, request.cookies
    return Given(
        authorization=headers.getlist("authorization"),
        api_key=headers.getlist("x-api-key"),
        session=cookies.get(SECURE_COOKIE) or cookies.get(COOKIE) if "cookie" in headers else None,
    )


RoomsDep = Annotated[Rooms, Depends(rooms)]
Asking = Annotated[Principal, Depends(may(Role.USER, Scope.ASK))]
Reading = Annotated[Principal, Depends(may(Role.USER, Scope.LOGS))]
Documenting = Annotated[Principal, Depends(may(Role.USER, Scope.DOCUMENTS))]
Keying = Annotated[Principal, Depends(may(Role.USER, Scope.KEYS))]
AdminReading = Annotated[Principal, Depends(may(Role.ADMIN, Scope.LOGS))]
AdminDocumenting = Annotated[Principal, Depends(may(Role.ADMIN, Scope.DOCUMENTS))]
AdminKeying = Annotated[Principal, Depends(may(Role.ADMIN, Scope.KEYS))]
