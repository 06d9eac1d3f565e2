"""GET and DELETE /ai/conversations: stored conversations and their erasure."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api import shapes
from service.api.audit_log import record_read
from service.api.dependencies import AskPrincipal, ServicesDep
from service.api.responses import json_response
from service.api.schemas import REFUSALS, Cursor, UserId, problem_schemas, schema_ref
from service.core.accounting import conversations
from service.core.accounting.conversations import PAGE_MAX, ConversationPage, Thread
from service.core.audit_log import Action
from service.core.errors import Erased, NotFound

router = APIRouter(prefix="/ai/conversations", tags=["answers"])

_INVALID = problem_schemas(_400="`invalid_cursor`, `foreign_host`")
_UNKNOWN = problem_schemas(
    _404="`not_found`: no conversation has this id, or it belongs to another user"
)
_ERASED = problem_schemas(_410="`erased`: the conversation was erased")


@router.get(
    "",
    responses={
        200: schema_ref(ConversationPage, "Conversations, the last started first"),
        **REFUSALS,
        **_INVALID,
    },
)
async def list_conversations(
    services: ServicesDep,
    principal: AskPrincipal,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Cursor = None,
    user_id: Annotated[UserId | None, Query(description="The owner; for admins")] = None,
) -> Response:
    """The caller's conversations, without erased ones."""
    owner = user_id or principal.user_id
    if principal.visible_user_id not in {None, owner}:
        return json_response(ConversationPage(items=[], next_cursor=None))
    await services.answers.wait_written()
    async with services.database.read_session() as session:
        page = await conversations.list_conversations(
            session, user_id=owner, limit=limit, cursor=cursor
        )
    if page.items:
        await record_read(services, principal, Action.CONVERSATION_READ, [owner])
    return json_response(page)


@router.get(
    "/{conversation_id}",
    responses={
        200: schema_ref(shapes.ConversationThread, "The answers, oldest first"),
        **REFUSALS,
        **_INVALID,
        **_UNKNOWN,
        **_ERASED,
    },
)
async def get_conversation(
    conversation_id: str,
    services: ServicesDep,
    principal: AskPrincipal,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Cursor = None,
) -> Response:
    """A conversation with its ended answers. `conversation_id` is the id of the first one."""
    await services.answers.wait_written()
    async with services.database.read_session() as session:
        state = await conversations.read_state(session, conversation_id)
        if state is None or principal.visible_user_id not in {None, state.user_id}:
            raise NotFound("no conversation has this id")
        if state.erased_at:
            raise Erased("this conversation was erased")
        items, next_cursor = await conversations.read_thread(
            session, conversation_id, limit=limit, after=cursor
        )
    await record_read(
        services,
        principal,
        Action.CONVERSATION_READ,
        [state.user_id],
        target_id=conversation_id,
    )
    return json_response(
        Thread(id=conversation_id, user_id=state.user_id, items=items, next_cursor=next_cursor)
    )


@router.delete(
    "/{conversation_id}",
    status_code=204,
    responses={**REFUSALS, **_UNKNOWN},
    response_class=Response,
)
async def erase_conversation(
    conversation_id: str, services: ServicesDep, principal: AskPrincipal
) -> Response:
    """Stop running answers and erase all texts of a conversation; the account remains.

    Idempotent and final.
    """
    await services.answers.erase_conversation(conversation_id, principal)
    return Response(status_code=204)
