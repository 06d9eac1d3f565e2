"""Questions (POST /ai/test, POST and GET /ai/stream) and answers by id (/ai/answers)."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.audit_log import record_read
from service.api.dependencies import AskPrincipal, Services, ServicesDep, read_trace_headers
from service.api.fast_route import KEY, AskRoute, KeyDep, authorize_ask
from service.api.problems import create_problem_response, create_quota_headers
from service.api.query_parameters import check_query
from service.api.relaying import OwnerResponse, build_principal, enter_reader
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    AnswerInProgress,
    AnswerStarted,
    AskBody,
    ConversationId,
    DocumentIds,
    ModelName,
    NotBlank,
    Tags,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.api.sse import create_stream_response
from service.api.waiting import wait_done, wait_finished
from service.core.answering.answers import (
    ATTACH_SECONDS,
    AnswerRequest,
    StartedAnswer,
    Stream,
    parse_event_id,
)
from service.core.audit_log import Action
from service.core.auth.principals import Principal
from service.core.errors import KotaeError, NotFound, OwnedElsewhere, TooLarge
from service.core.fair_share import current_user
from service.core.ports import RedeemedTicket, TicketGrant
from service.core.records import Answer, create_answer_object

# Not registered, but usual in logs and metrics: nothing was sent (introduced by nginx).
CLIENT_CLOSED_REQUEST = 499

router = APIRouter(prefix="/ai", tags=["answers"], route_class=AskRoute)

_PROVIDER = problem_schemas(
    _400="`unknown_model`, `provider_rejected`, `foreign_host`",
    _429="`quota_exceeded`: a rate limit or a quota of the user or key; see `limit`",
    _502="`provider_error`, `provider_unreachable`, `provider_refused`, `provider_cut`, "
    "`provider_invalid`",
    _503="`overloaded`, `shutting_down`, `provider_busy`, `database_unavailable`, "
    "`quota_unavailable`: retry after `Retry-After`",
    _504="`provider_timeout`: the provider did not respond in time; it may have billed",
)
_ERASED = problem_schemas(_410="`erased`: the texts of this answer were erased")
_CONTINUED = problem_schemas(
    _404="`not_found`: no conversation, answer or event has this id, or it belongs to another user",
    _409="`conversation_busy`: an answer of the conversation is in progress; "
    "`idempotency_conflict`: the `Idempotency-Key` was used for a different request",
    _410="`erased`: the conversation, or the answer of the `Idempotency-Key`, was erased",
)
REPLAYED = {"Idempotent-Replayed": "true"}
_UNKNOWN = problem_schemas(
    _404="`not_found`: no answer or event has this id, or it belongs to another user"
)
_TICKET = problem_schemas(
    _403="`ticket_invalid`: used, expired or for another answer; `foreign_origin`"
)
_BEYOND = {"description": "There are no events after this one"}
_STREAM = {
    "description": "Server-sent events: `start`, unnamed `{delta}` events, then `done` or "
    "`failure`. Ids are `{answer}.{characters so far}`.",
    "content": {
        "text/event-stream": {
            "example": (
                "retry: 2000\nevent: start\nid: 01a2….0\n"
                'data: {"id":"01a2…","model":"extractive","grounded":true,"context":[…]}\n\n'
                'id: 01a2….8\ndata: {"delta":"返品は30日以内"}\n\n'
                "event: done\nid: 01a2….9\n"
                'data: {"id":"01a2…","status":"completed","total_tokens":123,…}\n\n'
            )
        }
    },
}


async def read_last_event_id(
    last_event_id: Annotated[
        str | None,
        Query(max_length=64, description="Same as the header, for clients that cannot set headers"),
    ] = None,
    header: Annotated[str | None, Header(alias="Last-Event-ID", max_length=64)] = None,
) -> str | None:
    """The id of the last event the client received; None if there was none."""
    return header or last_event_id or None


@router.post(
    "/test",
    responses={
        200: schema_ref(Answer, "The answer object"),
        **REFUSALS,
        **_PROVIDER,
        **_CONTINUED,
    },
)
async def create_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: AskPrincipal, key: KeyDep
) -> Response:
    """Answer a prompt in one response. A failure is a problem with an `answer_id` and is logged.

    After a disconnect without an idempotency key the provider call is cancelled.
    """
    answer_request = await build_request(body, request, services, principal, stream=False)
    with services.open_requests.hold(principal.user_id):
        started = await begin_while_connected(request, answer_request, key, services)
        if started is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        stream = started.stream
        await wait_finished(request, stream)
    if stream.outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = REPLAYED if started.replayed else {}
    headers = headers | build_quota_headers(answer_request, services)
    if error := stream.error:
        error.extra["answer_id"] = stream.intent.id
        return create_problem_response(error, request.scope, headers)
    return json_response(create_answer_object(stream.outcome), headers=headers)


@router.post("/stream", responses={200: _STREAM, **REFUSALS, **_PROVIDER, **_CONTINUED})
async def stream_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: AskPrincipal, key: KeyDep
) -> Response:
    """Answer a prompt as a stream.

    After a disconnect the provider call is cancelled, immediately or later if the client may
    return.
    """
    services.open_requests.require(principal.user_id)
    answer_request = await build_request(body, request, services, principal, stream=True)
    started = await begin_while_connected(request, answer_request, key, services)
    if started is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    response = create_stream_response(
        started.stream,
        services.limits,
        enter=partial(EventReader(principal).enter, services),
    )
    response.headers.update(
        (REPLAYED if started.replayed else {}) | build_quota_headers(answer_request, services)
    )
    return response


_LastEventIdDep = Annotated[str | None, Depends(read_last_event_id)]


@router.get(
    "/stream", responses={200: _STREAM, 204: _BEYOND, **REFUSALS, **_PROVIDER, **_CONTINUED}
)
async def stream_answer_to_event_source(
    request: Request,
    services: ServicesDep,
    principal: AskPrincipal,
    last_event_id: _LastEventIdDep,
    prompt: Annotated[NotBlank, Query(description="The question")],
    grounded: bool = True,
    model: Annotated[ModelName | None, Query()] = None,
    max_tokens: Annotated[int | None, Query(ge=1)] = None,
    temperature: Annotated[float | None, Query(ge=0, le=2)] = None,
    user_id: Annotated[UserId | None, Query()] = None,
    documents: Annotated[DocumentIds | None, Query()] = None,
    tags: Annotated[Tags | None, Query(alias="tag", min_length=1)] = None,
    conversation_id: Annotated[ConversationId | None, Query()] = None,
    key: Annotated[
        str | None,
        Query(
            pattern=f"^{KEY.pattern}$",
            description="An idempotency key: a reconnect without an event id finds its answer",
        ),
    ] = None,
) -> Response:
    """The same for a browser's `EventSource`. A reconnect with `Last-Event-ID` resumes."""
    if last_event_id:
        reader = EventReader(principal)
        return await _resume_stream(last_event_id[:36], last_event_id, services, reader)
    body = AskBody(
        prompt=prompt,
        grounded=grounded,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        user_id=user_id,
        documents=documents,
        tags=tags,
        conversation_id=conversation_id,
    )
    services.open_requests.require(principal.user_id)
    answer_request = await build_request(
        body, request, services, principal, stream=True, resumable=True
    )
    try:
        started = await begin_answer(answer_request, key, services)
    except OwnedElsewhere as error:
        return OwnerResponse(services, principal, error)
    response = create_stream_response(
        started.stream,
        services.limits,
        enter=partial(EventReader(principal).enter, services),
    )
    response.headers.update(
        (REPLAYED if started.replayed else {}) | build_quota_headers(answer_request, services)
    )
    return response


@router.post(
    "/answers",
    status_code=202,
    responses={
        202: schema_ref(AnswerStarted, "The answer has started; its events are at `events_url`"),
        **REFUSALS,
        **_PROVIDER,
        **_CONTINUED,
    },
)
async def start_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: AskPrincipal, key: KeyDep
) -> Response:
    """Start an answer. `events_url` contains a one-time ticket instead of a credential."""
    answer_request = await build_request(
        body,
        request,
        services,
        principal,
        stream=True,
        resumable=True,
        attach_seconds=services.settings.ticket_seconds,
    )
    started = await begin_answer(answer_request, key, services)
    intent = started.stream.intent
    issued = services.tickets.issue(
        TicketGrant(
            intent.id,
            principal.user_id,
            principal.visible_user_id,
            principal.credential,
            principal.key_id,
            principal.ends_at,
        )
    )
    location = f"{request.scope['root_path']}/ai/answers/{intent.id}"
    body_out = AnswerStarted(
        id=intent.id,
        events_url=f"{location}/events?ticket={issued.ticket}",
        expires_at=datetime.fromtimestamp(issued.expires_at, UTC),
        resumable=not started.stream.degraded,
        conversation_id=intent.conversation_id,
    )
    headers = (
        {"Location": location}
        | (REPLAYED if started.replayed else {})
        | build_quota_headers(answer_request, services)
    )
    return json_response(body_out, 202, headers)


@dataclass(frozen=True)
class EventReader:
    """Who reads events: a principal, with the ticket if there is one."""

    principal: Principal
    ticket: RedeemedTicket | None = None

    def enter(self, services: Services, disconnect: Callable[[], None]) -> Callable[[], None]:
        """Register the reader; returns the function to call when it has left."""
        end_reading, ticket = enter_reader(services, self.principal, disconnect), self.ticket
        if ticket is None:
            return end_reading
        ticket.add_reader()

        def leave() -> None:
            ticket.remove_reader()
            end_reading()

        return leave


async def authorize_reader(
    answer_id: str,
    request: Request,
    services: ServicesDep,
    last_event_id: _LastEventIdDep,
    ticket: Annotated[
        str | None,
        Query(max_length=2000, description="From `events_url`; replaces a credential"),
    ] = None,
) -> EventReader:
    """The reader's principal: from the ticket, or else from a credential."""
    if ticket is None:
        return EventReader(await authorize_ask(request))
    await check_query(request)  # before the ticket is used up
    seq = _parse_position(answer_id, last_event_id)
    if seq < 0:
        redeemed = services.tickets.redeem(ticket, answer_id)
    else:
        redeemed = services.tickets.resume(ticket, answer_id, seq)
    principal = build_principal(redeemed.grant)
    await services.authenticator.require_valid(principal)
    current_user.set(principal.user_id)
    return EventReader(principal, redeemed)


authorize_reader.requires = authorize_ask.requires  # type: ignore[attr-defined]  # checked when the ticket was issued


@router.get(
    "/answers/{answer_id}/events",
    responses={200: _STREAM, 204: _BEYOND, **REFUSALS, **_UNKNOWN, **_ERASED, **_TICKET},
)
async def stream_answer_events(
    answer_id: str,
    services: ServicesDep,
    last_event_id: _LastEventIdDep,
    reader: Annotated[EventReader, Depends(authorize_reader)],
) -> Response:
    """The events of an answer, from `start` or after `Last-Event-ID`. Several clients may read."""
    return await _resume_stream(answer_id, last_event_id, services, reader)


@router.get(
    "/answers/{answer_id}",
    responses={
        200: schema_ref(Answer, "The answer object"),
        202: schema_ref(AnswerInProgress, "In progress: the text so far"),
        **REFUSALS,
        **_UNKNOWN,
        **_ERASED,
    },
)
async def get_answer(answer_id: str, services: ServicesDep, principal: AskPrincipal) -> Response:
    """An answer by its id. Polling a running answer keeps it running."""
    stream = await find_stream(answer_id, services, principal)
    if stream.outcome:
        return json_response(create_answer_object(stream.outcome))
    stream.restart_leave_timer()
    return json_response(
        AnswerInProgress.from_intent(stream.intent, stream.text), 202, {"Retry-After": "1"}
    )


@router.delete(
    "/answers/{answer_id}",
    status_code=204,
    responses={**REFUSALS, **_UNKNOWN, **_ERASED},
    response_class=Response,
)
async def stop_answer(answer_id: str, services: ServicesDep, principal: AskPrincipal) -> Response:
    """Stop an answer: the provider call is cancelled and the text so far is kept. Idempotent."""
    await services.answers.stop_answer(answer_id, principal.visible_user_id)
    return Response(status_code=204)


async def find_stream(answer_id: str, services: Services, principal: Principal) -> Stream:
    """The stream of an answer that the caller may read; reads of admins are recorded.

    Raises `NotFound`, `Erased`, `OwnedElsewhere` and `DatabaseUnavailable`.
    """
    stream = await services.answers.find_stream(answer_id, principal.visible_user_id)
    intent = stream.intent
    if principal.user_id not in {intent.user_id, intent.asked_by}:
        await record_read(
            services, principal, Action.ANSWER_READ, [intent.user_id], target_id=answer_id
        )
    return stream


async def _resume_stream(
    answer_id: str, last_event_id: str | None, services: Services, reader: EventReader
) -> Response:
    """Send the events after the given one; 204 beyond the end, which stops an `EventSource`.

    Raises `NotFound`.
    """
    seq = _parse_position(answer_id, last_event_id)
    stream = await find_stream(answer_id, services, reader.principal)
    if seq >= stream.last_seq and stream.outcome is not None:
        return Response(status_code=204)
    if seq > stream.last_seq:
        raise NotFound("this answer has no event with this id")
    services.open_requests.require(reader.principal.user_id)
    ticket = reader.ticket
    if ticket is not None and seq < 0:  # once: at the first use
        stream.add_finish_callback(ticket.record_end)
    return create_stream_response(
        stream,
        services.limits,
        after=seq,
        enter=partial(reader.enter, services),
        on_batch=ticket.record_sent if ticket else None,
    )


def _parse_position(answer_id: str, last_event_id: str | None) -> int:
    """The position of the last received event; -1 without one. Raises `NotFound`."""
    position = parse_event_id(last_event_id) if last_event_id else (answer_id, -1)
    if position is None or position[0] != answer_id:
        raise NotFound("this answer has no event with this id")
    return position[1]


async def begin_answer(
    answer_request: AnswerRequest, key: str | None, services: Services
) -> StartedAnswer:
    """Start an answer, or return that of the idempotency key."""
    if key is None:
        return StartedAnswer(await services.answers.answer(answer_request), replayed=False)
    return await services.answers.answer_once(answer_request, key)


async def begin_while_connected(
    request: Request, answer_request: AnswerRequest, key: str | None, services: Services
) -> StartedAnswer | None:
    """Like `begin_answer`; None if the client disconnects during the search.

    An answer that can be continued or repeated by its client does not end with the connection.
    """
    if key is not None or answer_request.retry_seconds or not answer_request.grounded:
        return await begin_answer(answer_request, key, services)
    beginning = asyncio.create_task(begin_answer(answer_request, key, services), name="begin")
    try:
        await wait_done(request.scope, request.receive, beginning)
        if beginning.done():
            return beginning.result()
    finally:
        beginning.cancel()
    with suppress(asyncio.CancelledError, KotaeError):
        await beginning
    return None


def build_quota_headers(answer_request: AnswerRequest, services: Services) -> dict[str, str]:
    """`RateLimit` headers for the caller's limits."""
    return (
        create_quota_headers(services.quota.windows(answer_request.subjects))
        if any(subject.limits for subject in answer_request.subjects)
        else {}
    )


async def build_request(
    body: AskBody,
    request: Request,
    services: Services,
    principal: Principal,
    *,
    stream: bool,
    resumable: bool = False,
    attach_seconds: float = ATTACH_SECONDS,
) -> AnswerRequest:
    """Create the request for `core/answering`. Raises `TooLarge`."""
    settings = services.settings
    prompt, history = body.split_question()
    characters = len(prompt) + sum(len(message.content) for message in history)
    if characters > settings.prompt_characters_max:
        what = "messages are" if history else "prompt is"
        raise TooLarge(f"the {what} longer than {settings.prompt_characters_max} characters")
    if body.max_tokens and body.max_tokens > settings.max_tokens_max:
        raise TooLarge(f"max_tokens is more than {settings.max_tokens_max}")
    user_id = body.user_id if body.user_id and principal.may_impersonate else principal.user_id
    current_user.set(user_id)
    subjects, sees = principal.quota_subjects, principal.visible_user_id
    if user_id != principal.user_id:
        if principal.credential != "open":
            sees = user_id  # the answer and its sources must be readable by that user
        subjects = (
            await services.authenticator.read_subject(user_id),
            *principal.key_subjects,
        )
    return AnswerRequest(
        prompt=prompt,
        history=history,
        conversation_id=body.conversation_id,
        grounded=body.grounded,
        endpoint=request.scope["route"].path,
        user_id=user_id,
        key_id=principal.key_id,
        subjects=subjects,
        principal=principal,
        asked_by=principal.user_id if user_id != principal.user_id else None,
        sees=sees,
        request_id=request.scope["request_id"],
        trace_headers=read_trace_headers(request) if settings.tracing else {},
        stream=stream,
        resumable=resumable,
        attach_seconds=attach_seconds,
        model=body.model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        documents=body.documents,
        tags=body.tags,
    )
