"""What routes ask for: the rooms of this service, and who is asking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.core import auth
from service.core.answer import Answers
from service.core.auth import Principal
from service.core.db import Database
from service.core.ports import RecordQueue, Worker
from service.core.settings import Settings
from service.core.telemetry import Metrics


@dataclass(frozen=True)
class Rooms:
    """Everything that a route may use; made once, in `service.main`."""

    settings: Settings
    database: Database
    queue: RecordQueue
    workers: Mapping[str, Worker]
    answers: Answers
    metrics: Metrics


async def rooms(request: Request) -> Rooms:
    """The rooms, from the lifespan's state."""
    found: Rooms = request.state.rooms
    return found


async def principal(request: Request) -> Principal:
    """Who is asking. Raises `Unauthorized`."""
    return auth.authenticate(request.state.rooms.settings, request.headers.get("authorization"))


RoomsDep = Annotated[Rooms, Depends(rooms)]
PrincipalDep = Annotated[Principal, Depends(principal)]
