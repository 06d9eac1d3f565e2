"""Receipts: the signed accounts of answers, and the public keys that verify them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.dependencies import LogsPrincipal, ServicesDep
from service.api.log_queries import wait_fresh
from service.api.responses import json_response
from service.api.schemas import REFUSALS, UserId, problem_schemas, schema_ref
from service.api.shapes import KeySet
from service.core.accounting.receipt_log import PAGE_MAX
from service.core.accounting.receipts import Receipt, ReceiptPage

router = APIRouter(tags=["receipts"])

KEYS_SECONDS = 300  # how long clients may keep the keys
_MISSING = problem_schemas(
    _404="`not_found`: no ended answer has this id, or it belongs to another user",
    _410="`answer_damaged`: the row cannot be read",
)


@router.get(
    "/ai/logs/{answer_id}/receipt",
    responses={200: schema_ref(Receipt, "The receipt"), **REFUSALS, **_MISSING},
)
async def get_receipt(answer_id: str, services: ServicesDep, principal: LogsPrincipal) -> Response:
    """The receipt of an answer, signed at the first request and again if its account changed."""
    await wait_fresh(services)
    receipt = await services.receipts.issue(answer_id, user_id=principal.visible_user_id)
    return json_response(receipt)


@router.get(
    "/ai/receipts",
    responses={200: schema_ref(ReceiptPage, "Receipts, oldest first"), **REFUSALS},
)
async def list_receipts(
    services: ServicesDep,
    principal: LogsPrincipal,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Annotated[
        int, Query(ge=0, le=2**53, description="`next_cursor` of the previous page, or a number")
    ] = 0,
    user_id: Annotated[UserId | None, Query(description="Of this user; for admins")] = None,
) -> Response:
    """The receipts that were issued to the caller: a chain."""
    owner = user_id or principal.user_id
    if principal.visible_user_id not in {None, owner}:
        return json_response(ReceiptPage(items=[], next_cursor=None))
    return json_response(await services.receipts.list_receipts(owner, limit=limit, after=cursor))


@router.get(
    "/.well-known/jwks.json", responses={200: schema_ref(KeySet, "A JSON Web Key Set (RFC 7517)")}
)
async def get_public_keys(services: ServicesDep) -> Response:
    """The public keys of all receipts."""
    keys = await services.receipts.list_public_keys()
    headers = {"Cache-Control": f"public, max-age={KEYS_SECONDS}"}
    return json_response({"keys": keys}, headers=headers)
