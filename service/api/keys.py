"""API keys: create, list, rotate and revoke. Users manage their own keys, admins all keys."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.dependencies import KeysPrincipal, ServicesDep
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import REFUSALS, KeyBody, RotateBody, UserId, problem_schemas, schema_ref
from service.api.shapes import KeyList
from service.core.auth import store
from service.core.auth.principals import ALL_SCOPES, Role, Scope
from service.core.auth.store import ApiKey, NewKey
from service.core.encoding import sanitize_text, utc_now
from service.core.errors import InvalidRequest
from service.core.telemetry import log

router = APIRouter(prefix="/ai/keys", tags=["keys"], route_class=BodyRoute)

_REFUSALS = REFUSALS | problem_schemas(
    _403="`forbidden`: the key would exceed its creator; `foreign_origin`",
    _409="`keys_full`: revoke a key",
)
_ROTATE_REFUSALS = _REFUSALS | problem_schemas(
    _409="`key_replaced`: rotated before; `keys_full`: revoke a key"
)
_MISSING = problem_schemas(_404="`not_found`: no key has this id, or it belongs to another user")


@router.post(
    "",
    status_code=201,
    responses={201: schema_ref(ApiKey, "The key: `key` is returned only once"), **_REFUSALS},
)
async def create_key(body: KeyBody, services: ServicesDep, principal: KeysPrincipal) -> Response:
    """Create a key for yourself, or as an admin for others. It never exceeds its creator."""
    key = await store.create_key(
        services.database,
        principal,
        NewKey(
            user_id=body.user_id or principal.user_id,
            role=Role(body.role),
            scopes=frozenset(map(Scope, body.scopes))
            if body.scopes is not None
            else principal.scopes & ALL_SCOPES,
            name=sanitize_text(body.name),
            expires_at=_parse_expiry(body),
            limits=body.limits.to_limits() if body.limits else None,
        ),
    )
    log.info("key.created", key_id=key.id)
    return json_response(key, 201)


@router.get("", responses={200: schema_ref(KeyList, "Keys, newest first"), **REFUSALS})
async def list_keys(
    services: ServicesDep,
    principal: KeysPrincipal,
    user_id: Annotated[UserId | None, Query()] = None,
) -> Response:
    """Your keys; as an admin all keys, or those of `user_id`."""
    async with services.database.read_session() as session:
        return json_response({"items": await store.list_keys(session, principal, user_id=user_id)})


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    responses={201: schema_ref(ApiKey, "The new key"), **_ROTATE_REFUSALS, **_MISSING},
)
async def rotate_key(
    key_id: str, services: ServicesDep, principal: KeysPrincipal, body: RotateBody | None = None
) -> Response:
    """Replace this key. The old key stays valid for the grace period. A key is rotated once."""
    grace = RotateBody().grace_seconds if body is None else body.grace_seconds
    key = await store.rotate_key(services.database, principal, key_id, grace_seconds=grace)
    services.authenticator.clear_cache()
    log.info("key.rotated", key_id=key_id, new_key_id=key.id)
    return json_response(key, 201)


@router.delete(
    "/{key_id}", status_code=204, responses={**REFUSALS, **_MISSING}, response_class=Response
)
async def revoke_key(
    key_id: str,
    services: ServicesDep,
    principal: KeysPrincipal,
    cascade: Annotated[bool, Query(description="Also revoke the keys that it created")] = False,
) -> Response:
    """Revoke a key: its requests are refused immediately, its streams end within five seconds."""
    revoked = await store.revoke_key(services.database, principal, key_id, cascade=cascade)
    services.authenticator.clear_cache()
    for revoked_id in revoked:
        log.info("key.revoked", key_id=revoked_id)
    return Response(status_code=204)


def _parse_expiry(body: KeyBody) -> datetime | None:
    """The expiry of a new key. Raises `InvalidRequest`."""
    if body.expires_in_days is not None and body.expires_at is not None:
        raise InvalidRequest("expires_at and expires_in_days exclude each other")
    if body.expires_in_days is not None:
        return utc_now() + timedelta(days=body.expires_in_days)
    if body.expires_at is not None and body.expires_at <= utc_now():
        raise InvalidRequest("expires_at is in the past")
    return body.expires_at
