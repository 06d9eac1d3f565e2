"""`/v1/responses`: create, retrieve, stream again, cancel and delete.

A response is an answer; its id is that of the answer with a prefix. Its request is kept with the
row, so that it can be retrieved, and continued by requests with `previous_response_id`.
"""

from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response

from service.api.answers import find_stream
from service.api.dependencies import AnyQueryAskPrincipal, Services, ServicesDep
from service.api.fast_route import AskRoute, KeyDep
from service.api.json_bodies import THREAD_BYTES_MIN, read_body
from service.api.openai.documentation import (
    RESPONSES_BODY,
    RESPONSES_RESPONSES,
    STORED_RESPONSES,
)
from service.api.openai.flow import AnswerRoute, get_documents_url, serve_answer
from service.api.openai.rejections import reject
from service.api.openai.responses_body import find_previous_id, parse_responses_body
from service.api.openai.responses_format import RESPONSE_PREFIX, ResponseEvents, ResponseFormat
from service.api.openai.responses_items import build_messages, list_items
from service.api.relaying import enter_reader
from service.api.responses import json_response
from service.api.sse import create_batches_response
from service.api.waiting import wait_finished
from service.core.answering.answers import Stream
from service.core.auth.principals import Principal
from service.core.errors import NotFound

PREVIOUS_MAX = 100  # responses before one

router = APIRouter(prefix="/v1", tags=["openai"], route_class=AnswerRoute)
stored = APIRouter(prefix="/v1/responses/resp_{answer_id}", tags=["openai"], route_class=AskRoute)


@router.post("/responses", openapi_extra=RESPONSES_BODY, responses=RESPONSES_RESPONSES)
async def create_response(
    request: Request, services: ServicesDep, principal: AnyQueryAskPrincipal, key: KeyDep
) -> Response:
    """Answer a request of the Responses API, in one response or as a stream of events.

    The model `kotae/<model>` and the tool `file_search` answer from the documents.
    """
    raw = await read_body(request, principal.user_id)
    previous = await _read_previous(find_previous_id(raw), services, principal)
    if len(raw) < THREAD_BYTES_MIN and not previous:
        body = parse_responses_body(raw, services.settings)
    else:
        parse = partial(parse_responses_body, raw, services.settings, previous)
        body = await anyio.to_thread.run_sync(parse)
    return await serve_answer(
        request,
        services,
        principal,
        raw,
        key,
        body.chat,
        partial(ResponseFormat, members=body.members),
        kept_body=body.members,
        background=body.background,
    )


@stored.get("", responses=STORED_RESPONSES)
async def get_response(
    request: Request,
    answer_id: str,
    services: ServicesDep,
    principal: AnyQueryAskPrincipal,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1)] = -1,
) -> Response:
    """A stored response, or with `stream=true` its events after `starting_after`."""
    answer_stream = await _find_stored(answer_id, services, principal)
    response = ResponseFormat(
        answer_stream, partial(get_documents_url, request), answer_stream.intent.request_body or {}
    )
    if not stream:
        return json_response(response.build_body())
    services.open_requests.require(principal.user_id)
    events = ResponseEvents(response, starting_after)
    return create_batches_response(
        answer_stream.read_batches(events.encode_batch),
        services.limits,
        partial(enter_reader, services, principal),
    )


@stored.get("/input_items", responses=STORED_RESPONSES)
async def list_input_items(
    answer_id: str,
    services: ServicesDep,
    principal: AnyQueryAskPrincipal,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The input of a stored response, the last item first."""
    answer_stream = await _find_stored(answer_id, services, principal)
    items = list_items(answer_stream.intent.id, answer_stream.intent.request_body or {})
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise reject("after", "is not the id of an item")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


@stored.post("/cancel", responses=STORED_RESPONSES)
async def cancel_response(
    request: Request, answer_id: str, services: ServicesDep, principal: AnyQueryAskPrincipal
) -> Response:
    """Cancel a response that runs in the background. Idempotent."""
    answer_stream = await _find_stored(answer_id, services, principal)
    members = answer_stream.intent.request_body or {}
    if not members.get("background"):
        raise reject("response_id", "only responses with background: true can be cancelled")
    answer_stream.on_stop()
    await wait_finished(request, answer_stream)
    response = ResponseFormat(answer_stream, partial(get_documents_url, request), members)
    return json_response(response.build_body())


@stored.delete("", responses=STORED_RESPONSES)
async def delete_response(
    answer_id: str, services: ServicesDep, principal: AnyQueryAskPrincipal
) -> Response:
    """Erase the texts of a response for good; its account is kept. Stops it if it runs."""
    answer_stream = await _find_stored(answer_id, services, principal)
    await services.answers.erase_conversation(answer_stream.intent.id, principal)
    return json_response(
        {"id": f"{RESPONSE_PREFIX}{answer_id}", "object": "response", "deleted": True}
    )


async def _find_stored(answer_id: str, services: Services, principal: Principal) -> Stream:
    """The stream of a response that can be retrieved. Raises `NotFound`, `Erased`."""
    stream = await find_stream(answer_id, services, principal)
    if stream.intent.request_body is None:
        raise NotFound("no response has this id")
    return stream


async def _read_previous(
    previous_id: str | None, services: Services, principal: Principal
) -> list[dict[str, Any]]:
    """The messages of the responses that a request continues, oldest first.

    Raises `Erased`, and `InvalidRequest` for one that is unknown, is running or has failed.
    """
    turns: list[list[dict[str, Any]]] = []
    while previous_id is not None:
        if len(turns) == PREVIOUS_MAX:
            raise reject("previous_response_id", f"more than {PREVIOUS_MAX} responses precede it")
        previous_id = previous_id.removeprefix(RESPONSE_PREFIX)
        try:
            stream = await _find_stored(previous_id, services, principal)
        except NotFound:
            raise reject("previous_response_id", "no response has this id") from None
        members = stream.intent.request_body or {}
        response = ResponseFormat(stream, str, members).build_body()
        if response["status"] not in {"completed", "incomplete"}:
            raise reject("previous_response_id", f"that response is {response['status']}")
        items = list_items(stream.intent.id, members)
        turns.append(build_messages([*items, *response["output"]]))
        previous_id = members.get("previous_response_id")
    return [message for turn in reversed(turns) for message in turn]
