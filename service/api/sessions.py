"""Browser sessions: a cookie in place of an API key, so that pages do not store keys.

The cookie is `HttpOnly` and `SameSite=Lax`, with the `__Host-` prefix over TLS; under a path prefix
its path is the prefix, and over TLS its name begins with `__Secure-`. `check_origin` and
`check_csrf` (core/auth/origin.py) additionally refuse requests from other sites.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Request, Response

from service.api.dependencies import (
    AnyPrincipal,
    ServicesDep,
    get_cookie_name,
    read_credentials,
)
from service.api.query_parameters import check_query
from service.api.responses import json_response
from service.api.schemas import REFUSALS, schema_ref
from service.api.shapes import SessionInfo
from service.core.auth import store
from service.core.auth.credentials import hash_credential, parse_header_credential
from service.core.auth.principals import Principal
from service.core.encoding import utc_now
from service.core.errors import Unauthorized
from service.core.telemetry import log

router = APIRouter(prefix="/auth/session", tags=["session"])


@router.post("", responses={200: schema_ref(SessionInfo, "The user, and a cookie"), **REFUSALS})
async def sign_in(request: Request, services: ServicesDep, principal: AnyPrincipal) -> Response:
    """Exchange the key or JWT of this request for a session cookie that never outlives it."""
    if services.settings.auth == "open":
        return _create_session_response(principal)
    if parse_header_credential(read_credentials(request)) is None:
        raise Unauthorized("a session requires a key or a JWT, not another session")
    value, end = await store.begin_session(
        services.database,
        principal,
        services.authenticator.get_session_origin(principal),
        seconds=services.settings.session_seconds,
    )
    secure, root_path = request.scope["scheme"] == "https", request.scope["root_path"]
    response = _create_session_response(principal, end)
    response.set_cookie(
        get_cookie_name(root_path, secure=secure),
        value,
        max_age=max(1, int((end - utc_now()).total_seconds())),
        path=root_path or "/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )
    log.info("session.begun")
    return response


@router.get("", responses={200: schema_ref(SessionInfo, "The user"), **REFUSALS})
async def get_session(principal: AnyPrincipal) -> Response:
    """The current user and the expiry of the credential."""
    return _create_session_response(
        principal,
        None if principal.ends_at is None else datetime.fromtimestamp(principal.ends_at, UTC),
    )


@router.delete(
    "",
    status_code=204,
    responses=REFUSALS,
    response_class=Response,
    dependencies=[Depends(check_query)],
)
async def sign_out(request: Request, services: ServicesDep) -> Response:
    """End the session of this request's cookie, if any. The cookie is invalid from then on."""
    if (value := read_credentials(request).session) is not None:
        await store.end_session(services.database, hash_credential(value))
        services.authenticator.clear_cache()
    response = Response(status_code=204)
    root_path = request.scope["root_path"]
    for secure in (False, True):
        response.delete_cookie(
            get_cookie_name(root_path, secure=secure),
            path=root_path or "/",
            secure=secure,
            httponly=True,
            samesite="lax",
        )
    return response


def _create_session_response(principal: Principal, end: datetime | None = None) -> Response:
    return json_response({"user_id": principal.user_id, "role": principal.role, "expires_at": end})
