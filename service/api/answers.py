"""POST /ai/test, POST and GET /ai/stream."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.deps import Asking, Rooms, RoomsDep
from service.api.problems import problem_response
from service.api.schemas import REFUSALS, AskBody, ModelName, NotBlank, UserId, problems, ref
from service.api.sse import stream_response
from service.core.answer import Ask
from service.core.auth.principals import Principal
from service.core.errors import InvalidRequest, KotaeError, NotFound, TooLarge
from service.core.events import Answer, answer_object, parse_event_id, to_json
from service.core.idempotency import Begun

router = APIRouter(prefix="/ai", tags=["answers"])

_PROVIDER = problems(
    _400="`unknown_model`, `provider_rejected`, `foreign_host`",
    _502="`provider_error`, `provider_unreachable`, `provider_refused`, `provider_cut`, `provider_invalid`",
    _503="`overloaded`, `shutting_down`, `provider_busy`, `database_unavailable`: come back after `Retry-After`",
    _504="`provider_timeout`: the provider was silent for too long; it may have billed",
)
_KEYED = problems(_409="`idempotency_conflict`: the `Idempotency-Key` came with another request before")
_REPLAYED = {"Idempotent-Replayed": "true"}
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_STREAM = {
    "description": "Server-sent events: `start`, unnamed `{delta}` ones, then `done` or `failure`. Ids are `{answer}.{seq}`.",
    "content": {
        "text/event-stream": {
            "example": (
                'retry: 2000\n\nevent: start\nid: 01a2….0\ndata: {"id":"01a2…","model":"extractive","grounded":true,"context":[…]}\n\n'
                'id: 01a2….1\ndata: {"delta":"返品は30日以内"}\n\n'
                'event: done\nid: 01a2….2\ndata: {"id":"01a2…","status":"completed","total_tokens":123,…}\n\n'
            )
        }
    },
}


async def idempotency_key(
    request: Request,
    given: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="The same key and the same request get the same answer, which is made once. 1 to 255 visible ASCII characters.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        ),
    ] = None,
) -> str | None:
    """The key of a request, if it has one. Raises `InvalidRequest`."""
    if given is not None and (not _KEY.fullmatch(given) or len(request.headers.getlist("Idempotency-Key")) > 1):
        raise InvalidRequest("Idempotency-Key must be one header of 1 to 255 visible ASCII characters")
    return given


KeyDep = Annotated[str | None, Depends(idempotency_key)]


@router.post("/test", responses={200: ref(Answer, "The answer and its account"), **REFUSALS, **_PROVIDER, **_KEYED})
async def ask(body: AskBody, request: Request, rooms: RoomsDep, principal: Asking, key: KeyDep) -> Response:
    """Answer a prompt in one piece. A failed answer is a problem with an `answer_id`: it is in the log too."""
    begun = await _begin(_ask(body, request, rooms, principal, stream=False), key, rooms)
    headers = _REPLAYED if begun.replayed else None
    try:
        outcome = await begun.stream.wait_finished()
    except KotaeError as error:
        error.extra["answer_id"] = begun.stream.intent.id
        return problem_response(error, request.scope["request_id"], headers)
    return Response(to_json(answer_object(outcome)), headers=headers, media_type="application/json")


@router.post("/stream", responses={200: _STREAM, **REFUSALS, **_PROVIDER, **_KEYED})
async def stream(body: AskBody, request: Request, rooms: RoomsDep, principal: Asking, key: KeyDep) -> Response:
    """Answer a prompt as a stream. When the client leaves, the provider is stopped: at once, or later if it may come back."""
    begun = await _begin(_ask(body, request, rooms, principal, stream=True), key, rooms)
    response = stream_response(begun.stream, rooms.settings)
    response.headers.update(_REPLAYED if begun.replayed else {})
    return response


@router.get("/stream", responses={200: _STREAM, 204: {"description": "Nothing comes after that event"}, **REFUSALS, **_PROVIDER})
async def stream_to_event_source(
    request: Request,
    rooms: RoomsDep,
    principal: Asking,
    prompt: Annotated[NotBlank, Query(description="The question")],
    grounded: bool = True,
    model: Annotated[ModelName | None, Query()] = None,
    max_tokens: Annotated[int | None, Query(ge=1)] = None,
    temperature: Annotated[float | None, Query(ge=0, le=2)] = None,
    user_id: Annotated[UserId | None, Query()] = None,
    last_event_id: Annotated[str | None, Query(max_length=64, description="As the header, for clients that cannot send one")] = None,
    last_event_id_header: Annotated[str | None, Header(alias="Last-Event-ID", max_length=64)] = None,
) -> Response:
    """The same for a browser's `EventSource`. A reconnect carries `Last-Event-ID` and resumes: it never asks twice."""
    if seen := last_event_id_header or last_event_id:
        return _resume(seen, rooms, principal)
    body = AskBody(prompt=prompt, grounded=grounded, model=model, max_tokens=max_tokens, temperature=temperature, user_id=user_id)
    begun = await rooms.answers.answer(_ask(body, request, rooms, principal, stream=True, resumable=True))
    return stream_response(begun, rooms.settings)


def _resume(event_id: str, rooms: Rooms, principal: Principal) -> Response:
    """Go on after that event. Beyond the end: 204, which tells an `EventSource` to stop."""
    place = parse_event_id(event_id)
    found = rooms.answers.find(place[0], principal.sees) if place else None
    if place is None or found is None or place[1] > found.last_seq:
        raise NotFound("no stream that can be resumed has this event")
    if found.outcome is not None and place[1] == found.last_seq:
        return Response(status_code=204)
    return stream_response(found, rooms.settings, after=place[1])


async def _begin(ask: Ask, key: str | None, rooms: Rooms) -> Begun:
    if key is None:
        return Begun(await rooms.answers.answer(ask), replayed=False)
    return await rooms.answers.answer_once(ask, key)


def _ask(body: AskBody, request: Request, rooms: Rooms, principal: Principal, *, stream: bool, resumable: bool = False) -> Ask:
    """The request as the plot takes it. Raises `TooLarge`."""
    settings = rooms.settings
    if len(body.prompt) > settings.prompt_characters_max:
        raise TooLarge(f"the prompt is longer than {settings.prompt_characters_max} characters")
    if body.max_tokens and body.max_tokens > settings.max_tokens_max:
        raise TooLarge(f"max_tokens is more than {settings.max_tokens_max}")
    user_id = body.user_id if body.user_id and principal.on_behalf else principal.user_id
    return Ask(
        prompt=body.prompt,
        grounded=body.grounded,
        endpoint=request.scope["route"].path,
        user_id=user_id,
        key_id=principal.key_id,
        asked_by=principal.user_id if user_id != principal.user_id else None,
        sees=principal.sees,
        request_id=request.scope["request_id"],
        stream=stream,
        resumable=resumable,
        model=body.model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
    )
