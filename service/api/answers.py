"""POST /ai/test, POST and GET /ai/stream, and answers by their id: POST, GET and DELETE /ai/answers."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.dependencies import Asking, Services, ServicesDep
from service.api.fast_route import KEY, AskRoute, KeyDep, asking
from service.api.problems import create_problem_response, create_quota_headers
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    AnswerInProgress,
    AnswerStarted,
    AskBody,
    DocumentIds,
    ModelName,
    NotBlank,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.api.sse import create_stream_response
from service.core.answering.answers import (
    ATTACH_SECONDS,
    AnswerRequest,
    StartedAnswer,
    parse_event_id,
)
from service.core.auth.principals import Principal, Role
from service.core.errors import KotaeError, NotFound, TooLarge
from service.core.ports import QuotaSubject, TicketGrant
from service.core.records import Answer, create_answer_object

router = APIRouter(prefix="/ai", tags=["answers"], route_class=AskRoute)

_PROVIDER = problem_schemas(
    _400="`unknown_model`, `provider_rejected`, `foreign_host`",
    _502="`provider_error`, `provider_unreachable`, `provider_refused`, `provider_cut`, `provider_invalid`",
    _503="`overloaded`, `shutting_down`, `provider_busy`, `database_unavailable`: come back after `Retry-After`",
    _504="`provider_timeout`: the provider was silent for too long; it may have billed",
)
_KEYED = problem_schemas(
    _409="`idempotency_conflict`: the `Idempotency-Key` came with another request before"
)
_REPLAYED = {"Idempotent-Replayed": "true"}
_UNKNOWN = problem_schemas(_404="`not_found`: no answer or event has this id, or it is not yours")
_TICKET = problem_schemas(
    _403="`ticket_invalid`: used, expired or for another answer; `foreign_origin`"
)
_BEYOND = {"description": "Nothing comes after that event"}
_STREAM = {
    "description": "Server-sent events: `start`, unnamed `{delta}` ones, then `done` or `failure`. Ids are `{answer}.{characters so far}`.",
    "content": {
        "text/event-stream": {
            "example": (
                'retry: 2000\nevent: start\nid: 01a2….0\ndata: {"id":"01a2…","model":"extractive","grounded":true,"context":[…]}\n\n'
                'id: 01a2….8\ndata: {"delta":"返品は30日以内"}\n\n'
                'event: done\nid: 01a2….9\ndata: {"id":"01a2…","status":"completed","total_tokens":123,…}\n\n'
            )
        }
    },
}


async def read_last_event_id(
    last_event_id: Annotated[
        str | None,
        Query(max_length=64, description="As the header, for clients that cannot send one"),
    ] = None,
    header: Annotated[str | None, Header(alias="Last-Event-ID", max_length=64)] = None,
) -> str | None:
    """The id of the last event that the client has seen; None if it has seen none."""
    return header or last_event_id or None


@router.post(
    "/test",
    responses={
        200: schema_ref(Answer, "The answer and its account"),
        **REFUSALS,
        **_PROVIDER,
        **_KEYED,
    },
)
async def create_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: Asking, key: KeyDep
) -> Response:
    """Answer a prompt in one piece. A failed answer is a problem with an `answer_id`: it is in the log too."""
    asked = await _ask(body, request, services, principal, stream=False)
    begun = await _begin(asked, key, services)
    headers = _REPLAYED if begun.replayed else {}
    try:
        outcome = await begun.stream.wait_finished()
    except KotaeError as error:
        error.extra["answer_id"] = begun.stream.intent.id
        return create_problem_response(
            error, request.scope["request_id"], headers | _quota(asked, services)
        )
    headers = headers | _quota(asked, services)
    return json_response(create_answer_object(outcome), headers=headers)


@router.post("/stream", responses={200: _STREAM, **REFUSALS, **_PROVIDER, **_KEYED})
async def stream_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: Asking, key: KeyDep
) -> Response:
    """Answer a prompt as a stream. When the client leaves, the provider is stopped: at once, or later if it may come back."""
    asked = await _ask(body, request, services, principal, stream=True)
    begun = await _begin(asked, key, services)
    response = create_stream_response(
        begun.stream,
        services.limits,
        enter=partial(services.revocation.watch_principal, principal),
    )
    response.headers.update((_REPLAYED if begun.replayed else {}) | _quota(asked, services))
    return response


_LastEventIdDep = Annotated[str | None, Depends(read_last_event_id)]


@router.get(
    "/stream", responses={200: _STREAM, 204: _BEYOND, **REFUSALS, **_PROVIDER, **_KEYED, **_UNKNOWN}
)
async def stream_answer_to_event_source(
    request: Request,
    services: ServicesDep,
    principal: Asking,
    seen: _LastEventIdDep,
    prompt: Annotated[NotBlank, Query(description="The question")],
    grounded: bool = True,
    model: Annotated[ModelName | None, Query()] = None,
    max_tokens: Annotated[int | None, Query(ge=1)] = None,
    temperature: Annotated[float | None, Query(ge=0, le=2)] = None,
    user_id: Annotated[UserId | None, Query()] = None,
    documents: Annotated[DocumentIds | None, Query()] = None,
    key: Annotated[
        str | None,
        Query(
            pattern=KEY.pattern,
            description="An idempotency key: a reconnect that has seen no event yet does not ask twice",
        ),
    ] = None,
) -> Response:
    """The same for a browser's `EventSource`. A reconnect carries `Last-Event-ID` and resumes: it never asks twice."""
    if seen:
        return await _go_on(seen[:36], seen, services, principal)
    body = AskBody(
        prompt=prompt,
        grounded=grounded,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        user_id=user_id,
        documents=documents,
    )
    asked = await _ask(body, request, services, principal, stream=True, resumable=True)
    begun = await _begin(asked, key, services)
    response = create_stream_response(
        begun.stream,
        services.limits,
        enter=partial(services.revocation.watch_principal, principal),
    )
    response.headers.update((_REPLAYED if begun.replayed else {}) | _quota(asked, services))
    return response


@router.post(
    "/answers",
    status_code=202,
    responses={
        202: schema_ref(AnswerStarted, "The answer has begun; its events are at `events_url`"),
        **REFUSALS,
        **_PROVIDER,
        **_KEYED,
    },
)
async def start_answer(
    body: AskBody, request: Request, services: ServicesDep, principal: Asking, key: KeyDep
) -> Response:
    """Begin an answer. Its events are at a URL with a one-time ticket: an `EventSource` needs no credential in it."""
    asked = await _ask(
        body,
        request,
        services,
        principal,
        stream=True,
        resumable=True,
        attach_seconds=services.settings.ticket_seconds,
    )
    begun = await _begin(asked, key, services)
    intent = begun.stream.intent
    issued = services.tickets.issue(
        TicketGrant(intent.id, principal.user_id, principal.visible_user_id)
    )
    where = f"{request.scope.get('root_path', '')}/ai/answers/{intent.id}"
    started = AnswerStarted(
        id=intent.id,
        events_url=f"{where}/events?ticket={issued.ticket}",
        expires_at=datetime.fromtimestamp(issued.expires_at, UTC),
        resumable=not begun.stream.degraded,
    )
    headers = {"Location": where} | (_REPLAYED if begun.replayed else {}) | _quota(asked, services)
    return json_response(started, 202, headers)


async def authorize_reader(
    answer_id: str,
    request: Request,
    services: ServicesDep,
    seen: _LastEventIdDep,
    ticket: Annotated[
        str | None,
        Query(max_length=2000, description="From `events_url`, in place of a credential"),
    ] = None,
) -> Principal:
    """Who reads here, by the ticket or else by a credential."""
    if ticket is None:
        return await asking(request)
    grant = services.tickets.redeem(ticket, answer_id, resuming=bool(seen))
    await services.authenticator.require_enabled(grant.user_id)
    return Principal(
        user_id=grant.user_id,
        role=Role.ADMIN if grant.sees is None else Role.USER,
        credential="ticket",
    )


authorize_reader.requires = asking.requires  # type: ignore[attr-defined]  # a ticket was given to somebody who may


@router.get(
    "/answers/{answer_id}/events",
    responses={200: _STREAM, 204: _BEYOND, **REFUSALS, **_UNKNOWN, **_TICKET},
)
async def stream_answer_events(
    answer_id: str,
    services: ServicesDep,
    seen: _LastEventIdDep,
    who: Annotated[Principal, Depends(authorize_reader)],
) -> Response:
    """The events of an answer, running or ended, from its `start` or after `Last-Event-ID`. Any number may read at once."""
    return await _go_on(answer_id, seen, services, who)


@router.get(
    "/answers/{answer_id}",
    responses={
        200: schema_ref(Answer, "The answer and its account"),
        202: schema_ref(AnswerInProgress, "It is not finished: what is known so far"),
        **REFUSALS,
        **_UNKNOWN,
    },
)
async def get_answer(answer_id: str, services: ServicesDep, principal: Asking) -> Response:
    """An answer by its id. Who asks for one that runs keeps it running."""
    found = await services.answers.find_stream(answer_id, principal.visible_user_id)
    if found.outcome:
        return json_response(create_answer_object(found.outcome))
    found.restart_leave_timer()
    return json_response(
        AnswerInProgress.from_intent(found.intent, found.text), 202, {"Retry-After": "1"}
    )


@router.delete(
    "/answers/{answer_id}",
    status_code=204,
    responses={**REFUSALS, **_UNKNOWN},
    response_class=Response,
)
async def stop_answer(answer_id: str, services: ServicesDep, principal: Asking) -> Response:
    """Stop an answer: the provider is left at once, the text so far is kept. One that has ended stays as it is."""
    await services.answers.stop_answer(answer_id, principal.visible_user_id)
    return Response(status_code=204)


async def _go_on(
    answer_id: str, seen: str | None, services: Services, principal: Principal
) -> Response:
    """The events after the one seen. Beyond the end: 204, which tells an `EventSource` to stop. Raises `NotFound`."""
    place = parse_event_id(seen) if seen else (answer_id, -1)
    if place is None or place[0] != answer_id:
        raise NotFound("this answer has no such event")
    found = await services.answers.find_stream(answer_id, principal.visible_user_id)
    if place[1] >= found.last_seq and found.outcome is not None:
        return Response(status_code=204)
    if place[1] > found.last_seq:
        raise NotFound("this answer has no such event")
    return create_stream_response(
        found,
        services.limits,
        after=place[1],
        enter=partial(services.revocation.watch_principal, principal),
    )


async def _begin(ask: AnswerRequest, key: str | None, services: Services) -> StartedAnswer:
    if key is None:
        return StartedAnswer(await services.answers.answer(ask), replayed=False)
    return await services.answers.answer_once(ask, key)


def _quota(ask: AnswerRequest, services: Services) -> dict[str, str]:
    """The headers that say where the limits of whoever asked stand."""
    return (
        create_quota_headers(services.quota.windows(ask.subjects))
        if any(subject.limits for subject in ask.subjects)
        else {}
    )


async def _ask(
    body: AskBody,
    request: Request,
    services: Services,
    principal: Principal,
    *,
    stream: bool,
    resumable: bool = False,
    attach_seconds: float = ATTACH_SECONDS,
) -> AnswerRequest:
    """The request as the plot takes it. Raises `TooLarge`."""
    settings = services.settings
    if len(body.prompt) > settings.prompt_characters_max:
        raise TooLarge(f"the prompt is longer than {settings.prompt_characters_max} characters")
    if body.max_tokens and body.max_tokens > settings.max_tokens_max:
        raise TooLarge(f"max_tokens is more than {settings.max_tokens_max}")
    user_id = body.user_id if body.user_id and principal.on_behalf else principal.user_id
    subjects, sees = principal.quota_subjects, principal.visible_user_id
    if user_id != principal.user_id:
        if principal.credential != "open":
            sees = user_id  # the answer is theirs to read, and so are its sources
        subjects = (
            QuotaSubject.for_user(user_id, await services.authenticator.read_limits(user_id)),
            *principal.key_subjects,
        )
    return AnswerRequest(
        prompt=body.prompt,
        grounded=body.grounded,
        endpoint=request.scope["route"].path,
        user_id=user_id,
        key_id=principal.key_id,
        subjects=subjects,
        principal=principal,
        asked_by=principal.user_id if user_id != principal.user_id else None,
        sees=sees,
        request_id=request.scope["request_id"],
        stream=stream,
        resumable=resumable,
        attach_seconds=attach_seconds,
        model=body.model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        documents=body.documents,
    )
