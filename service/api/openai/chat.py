"""`POST /v1/chat/completions`."""

from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from service.api.answers import (
    CLIENT_CLOSED_REQUEST,
)
from service.api.dependencies import AnyQueryAskPrincipal, ServicesDep
from service.api.fast_route import KeyDep
from service.api.json_bodies import THREAD_BYTES_MIN, read_body
from service.api.openai.chat_body import parse_chat_body
from service.api.openai.chat_format import ChatChunks, build_completion
from service.api.openai.documentation import CHAT_BODY, CHAT_RESPONSES
from service.api.openai.flow import (
    RETRY_HEADER,
    AnswerRoute,
    EventsResponse,
    begin_answer,
    build_headers,
    build_request,
    create_failure,
    end_reading,
    get_documents_url,
)
from service.api.responses import json_response
from service.api.waiting import wait_finished
from service.core.pricing import format_usd

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
    retry_count = request.headers.get(RETRY_HEADER)
    answer_request = build_request(
        body,
        request,
        services,
        principal,
        keyed_body=raw if key else None,
        may_retry=retry_count is not None,
    )
    with services.open_requests.hold(principal.user_id):
        started = await begin_answer(request, raw, answer_request, key, retry_count, services)
        if started is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        headers = build_headers(answer_request, started, services)
        if body.stream:
            chunks = ChatChunks(
                started.stream,
                include_usage=body.include_usage,
                get_documents_url=partial(get_documents_url, request),
            )
            return EventsResponse(chunks, request, services, principal, started, headers)
        stream = started.stream
        try:
            await wait_finished(request, stream)
        finally:
            end_reading(started, delivered=stream.outcome is not None)
    if stream.outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if stream.error is not None:
        return create_failure(request, started, headers)
    if stream.outcome.cost_nano_usd is not None:
        headers["x-kotae-cost"] = format_usd(stream.outcome.cost_nano_usd)
    completion = build_completion(stream, stream.outcome, partial(get_documents_url, request))
    return json_response(completion, headers=headers)
