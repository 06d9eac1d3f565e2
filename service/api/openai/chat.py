"""`POST /v1/chat/completions`."""

from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from service.api.dependencies import AnyQueryAskPrincipal, ServicesDep
from service.api.fast_route import KeyDep
from service.api.json_bodies import THREAD_BYTES_MIN, read_body
from service.api.openai.chat_body import parse_chat_body
from service.api.openai.chat_format import ChatFormat
from service.api.openai.documentation import CHAT_BODY, CHAT_RESPONSES
from service.api.openai.flow import AnswerRoute, serve_answer

router = APIRouter(prefix="/v1", tags=["openai"], route_class=AnswerRoute)


@router.post("/chat/completions", openapi_extra=CHAT_BODY, responses=CHAT_RESPONSES)
async def create_chat_completion(
    request: Request, services: ServicesDep, principal: AnyQueryAskPrincipal, key: KeyDep
) -> Response:
    """Answer a chat completion request of any OpenAI client, in one response or as a stream.

    The model `kotae/<model>` answers from the documents.
    """
    raw = await read_body(request, principal.user_id)
    if len(raw) < THREAD_BYTES_MIN:
        body = parse_chat_body(raw, services.settings)
    else:
        body = await anyio.to_thread.run_sync(parse_chat_body, raw, services.settings)
    create_format = partial(ChatFormat, include_usage=body.include_usage)
    return await serve_answer(request, services, principal, raw, key, body, create_format)
