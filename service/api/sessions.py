"""The browser's session: a cookie in the place of a key, so that no page has to keep one.

The cookie is `HttpOnly` and `SameSite=Lax`, with the `__Host-` prefix where there is TLS. That no other site's page can
use it is not left to the browser alone: see `source.check_source` and `source.check_session`.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from service.api.dependencies import COOKIE, SECURE_COOKIE, RoomsDep, Whoever, given
from service.api.responses import json_response
from service.api.schemas import REFUSALS
from service.core.auth import store
from service.core.auth.credentials import digest, explicit
from service.core.auth.principals import Principal
from service.core.encoding import now
from service.core.errors import Unauthorized
from service.core.telemetry import log

router = APIRouter(prefix="/auth/session", tags=["session"])


@router.post("", responses={200: {"description": "`{user_id, role, expires_at}`, and a cookie"}, **REFUSALS})
async def sign_in(request: Request, rooms: RoomsDep, principal: Whoever) -> Response:
    """Exchange the key or JWT of this request for a session cookie, which ends no later than that."""
    if rooms.settings.auth == "open":
        return _told(principal)
    if explicit(given(request)) is None:
        raise Unauthorized("a session begins with a key or a JWT, not with another session")
    value, end = await store.begin_session(rooms.database, principal, rooms.door.origin(principal), seconds=rooms.settings.session_seconds)
    secure = request.scope["scheme"] == "https"
    response = _told(principal, end)
    response.set_cookie(
        SECURE_COOKIE if secure else COOKIE,
        value,
        max_age=max(1, int((end - now()).total_seconds())),
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )
    log.info("session.begun")
    return response


@router.get("", responses={200: {"description": "`{user_id, role, expires_at}`"}, **REFUSALS})
async def whoami(principal: Whoever) -> Response:
    """Who is asking, and until when."""
    return _told(principal, None if principal.ends_at is None else datetime.fromtimestamp(principal.ends_at, UTC))


@router.delete("", status_code=204, responses=REFUSALS, response_class=Response)
async def sign_out(request: Request, rooms: RoomsDep) -> Response:
    """End the session of this request's cookie, if there is one. It is worth nothing from now on."""
    if (value := given(request).session) is not None:
        await store.end_session(rooms.database, digest(value))
        rooms.door.forget()
    response = Response(status_code=204)
    for name in (COOKIE, SECURE_COOKIE):
        response.delete_cookie(name, path="/", secure=name == SECURE_COOKIE, httponly=True, samesite="lax")
    return response


def _told(principal: Principal, end: datetime | None = None) -> Response:
    return json_response({"user_id": principal.user_id, "role": principal.role, "expires_at": end})
