"""Keys: POST and GET /ai/keys, rotating and revoking one. Of one's own; admins of everybody's."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.dependencies import Keying, ServicesDep
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import REFUSALS, KeyBody, RotateBody, UserId, problem_schemas, schema_ref
from service.core.auth import store
from service.core.auth.principals import EVERYTHING, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.encoding import utc_now
from service.core.errors import InvalidRequest
from service.core.telemetry import log

router = APIRouter(prefix="/ai/keys", tags=["keys"], route_class=BodyRoute)

_REFUSALS = REFUSALS | problem_schemas(
    _403="`forbidden`: more than you have yourself; `foreign_origin`",
    _409="`keys_full`: revoke some",
)
_ROTATE_REFUSALS = _REFUSALS | problem_schemas(
    _409="`key_replaced`: it was rotated before; `keys_full`: revoke some"
)
_MISSING = problem_schemas(_404="`not_found`: no key has this id, or it is not yours")


@router.post(
    "",
    status_code=201,
    responses={201: schema_ref(ApiKey, "The key: `key` is shown this once"), **_REFUSALS},
)
async def create_key(body: KeyBody, services: ServicesDep, principal: Keying) -> Response:
    """Make a key, for oneself; for others as an admin. It has no role and no scope that its maker has not."""
    made = await store.create_key(
        services.database,
        principal,
        NewKey(
            user_id=body.user_id or principal.user_id,
            role=Role(body.role),
            scopes=frozenset(map(Scope, body.scopes))
            if body.scopes is not None
            else principal.scopes & EVERYTHING,
            name=body.name,
            expires_at=_end(body),
            limits=body.limits.limits() if body.limits else None,
        ),
    )
    log.info("key.created", key_id=made.id)
    return json_response(made, 201)


@router.get("", responses={200: {"description": "`{items}`, newest first"}, **REFUSALS})
async def list_keys(
    services: ServicesDep, principal: Keying, user_id: Annotated[UserId | None, Query()] = None
) -> Response:
    """One's own keys; all of them, or those of `user_id`, as an admin."""
    async with services.database.read_session() as session:
        return json_response({"items": await store.list_keys(session, principal, user_id=user_id)})


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    responses={201: schema_ref(ApiKey, "The new key"), **_ROTATE_REFUSALS, **_MISSING},
)
async def rotate_key(
    key_id: str, services: ServicesDep, principal: Keying, body: RotateBody | None = None
) -> Response:
    """Create a key in place of this one, which stays valid for the grace period. A key is rotated once."""
    grace = RotateBody().grace_seconds if body is None else body.grace_seconds
    made = await store.rotate_key(services.database, principal, key_id, grace_seconds=grace)
    services.authenticator.clear_cache()
    log.info("key.rotated", key_id=key_id, new_key_id=made.id)
    return json_response(made, 201)


@router.delete(
    "/{key_id}", status_code=204, responses={**REFUSALS, **_MISSING}, response_class=Response
)
async def revoke_key(key_id: str, services: ServicesDep, principal: Keying) -> Response:
    """End a key: no request with it is taken from now on, and its streams end within five seconds."""
    await store.revoke_key(services.database, principal, key_id)
    services.authenticator.clear_cache()
    log.info("key.revoked", key_id=key_id)
    return Response(status_code=204)


def _end(body: KeyBody) -> datetime | None:
    """When the key ends. Raises `InvalidRequest`."""
    if body.expires_in_days is not None and body.expires_at is not None:
        raise InvalidRequest("give expires_at or expires_in_days, not both")
    if body.expires_in_days is not None:
        return utc_now() + timedelta(days=body.expires_in_days)
    if body.expires_at is not None and body.expires_at <= utc_now():
        raise InvalidRequest("expires_at has passed")
    return body.expires_at
