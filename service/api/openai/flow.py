"""What the routes of answers share: starting one or attaching a retry, headers, responses."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.api.answers import (
    CLIENT_CLOSED_REQUEST,
    REPLAYED,
    begin_while_connected,
    build_quota_headers,
)
from service.api.dependencies import Services, read_trace_headers
from service.api.fast_route import authorize_any_query, read_idempotency_key
from service.api.openai.chat_body import ChatBody
from service.api.openai.errors import create_rate_headers
from service.api.problems import create_problem_response
from service.api.relaying import FINGERPRINT, BodyRecorder, OwnerResponse
from service.api.responses import json_response
from service.api.sse import create_batches_response
from service.api.waiting import wait_finished, wait_output
from service.core.answering.answers import AnswerRequest, StartedAnswer, Stream
from service.core.auth.principals import Principal
from service.core.errors import OwnedElsewhere
from service.core.pricing import format_usd
from service.core.records import UsageSource

_RETRY_HEADER = b"x-stainless-retry-count"  # of the OpenAI SDKs, which may come back
# Headers that differ between the attempts of one request.
_ATTEMPT_HEADERS = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        b"x-stainless-read-timeout",
        b"x-stainless-retry-count",
        b"x-stainless-timeout",
    }
)


class AnswerRoute(APIRoute):
    """A route whose endpoint takes a request as it was sent."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for this route; cheap for others, as it is the first route."""
        if not scope["path"].endswith(self.path):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that this route matches."""
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        principal = await authorize_any_query(request)
        headers = scope["kotae.headers"]
        key = await read_idempotency_key(request, headers.get(b"idempotency-key"))
        if key is not None or headers.get(_RETRY_HEADER, "0") != "0":
            request = Request(scope, recorder := BodyRecorder(receive))
        services = request.state.services
        try:
            response = await self.endpoint(
                request=request, services=services, principal=principal, key=key
            )
        except OwnedElsewhere as error:
            response = OwnerResponse(services, principal, error, b"".join(recorder.parts))
        await response(scope, receive, send)


class Encoder(Protocol):
    """Encodes a stream for one reader."""

    def encode_batch(self, position: int) -> tuple[bytes, int]:
        """Return the events after the chunk at a position (-1: all), and the new position."""
        ...


class AnswerFormat(Protocol):
    """The form of an answer in a protocol."""

    def create_encoder(self) -> Encoder:
        """Return the encoder of its events for one reader."""
        ...

    def build_body(self) -> dict[str, Any]:
        """Return the answer as one object."""
        ...


class EventsResponse(Response):
    """The events of an answer. A failure before the first one is an error response."""

    def __init__(
        self,
        encoder: Encoder,
        request: Request,
        services: Services,
        principal: Principal,
        started: StartedAnswer,
        headers: dict[str, str],
    ) -> None:
        self._request, self._services, self._started = request, services, started
        self._extra_headers = headers
        self._user_id = principal.user_id
        self._enter = partial(services.revocation.watch_principal, principal)
        self._encoder = encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the first chunk, then send the response."""
        delivered, open_requests = False, self._services.open_requests
        open_requests.add(self._user_id)  # the endpoint has just released it
        try:
            delivered = await self._send(scope, receive, send)
        finally:
            open_requests.release(self._user_id)
            end_reading(self._started, delivered=delivered)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether everything was sent."""
        stream, services = self._started.stream, self._services
        limits = services.limits
        with stream.attach_reader():
            if not await wait_output(self._request, stream, limits.ping_seconds):
                return False  # the client has disconnected
            if stream.error is not None and not stream.has_chunks:
                failure = create_failure(self._request, self._started, self._extra_headers)
                await failure(scope, receive, send)
                return True
            batches = stream.read_batches(self._encoder.encode_batch)
            response = create_batches_response(batches, limits, self._enter)
            response.headers.update(self._extra_headers)
            await response(scope, receive, send)
            return response.completed


async def serve_answer(
    request: Request,
    services: Services,
    principal: Principal,
    raw: bytes,
    key: str | None,
    body: ChatBody,
    create_format: Callable[[Stream, Callable[[], str]], AnswerFormat],
    *,
    kept_body: dict[str, Any] | None = None,
    background: bool = False,
) -> Response:
    """Answer a translated request, in one response or as a stream.

    `raw`: the body as it was sent. `create_format`: takes the stream, and what returns the URL
    under which documents are. `kept_body`: of a request whose response can be retrieved.
    `background`: respond at once.
    """
    retry_count = request.scope["kotae.headers"].get(_RETRY_HEADER)
    answer_request = build_request(
        body,
        request,
        services,
        principal,
        keyed_body=raw if key else None,
        may_retry=retry_count is not None,
        kept_body=kept_body,
        background=background,
    )
    with services.open_requests.hold(principal.user_id):
        started = await begin_answer(request, raw, answer_request, key, retry_count, services)
        if started is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        headers, stream = build_headers(answer_request, started, services), started.stream
        answer_format = create_format(stream, partial(get_documents_url, request))
        if body.stream:
            encoder = answer_format.create_encoder()
            return EventsResponse(encoder, request, services, principal, started, headers)
        if background:
            end_reading(started, delivered=not await request.is_disconnected())
            return json_response(answer_format.build_body(), headers=headers)
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
    return json_response(answer_format.build_body(), headers=headers)


async def begin_answer(
    request: Request,
    raw: bytes,
    answer_request: AnswerRequest,
    key: str | None,
    retry_count: str | None,
    services: Services,
) -> StartedAnswer | None:
    """Start an answer, or find the one that the client repeats; None if it has disconnected."""
    if key is not None or retry_count is None or answer_request.principal is None:
        return await begin_while_connected(request, answer_request, key, services)
    scope = request.scope
    if FINGERPRINT not in scope:  # otherwise another replica has received the request
        scope[FINGERPRINT] = compute_fingerprint(scope, raw, answer_request.principal)
    fingerprint = scope[FINGERPRINT]
    return await services.answers.answer_or_attach(
        answer_request, fingerprint, is_retry=retry_count != "0"
    )


def compute_fingerprint(scope: Scope, raw: bytes, principal: Principal) -> bytes:
    """Identify a request: two with the same fingerprint differ in nothing but the attempt.

    All headers count, as any of them may identify a user, except those that differ by attempt.
    """
    digest = hashlib.sha256(raw)
    caller = (principal.user_id, principal.key_lineage or principal.key_id or principal.credential)
    headers = [header for header in scope["headers"] if header[0] not in _ATTEMPT_HEADERS]
    digest.update(repr((scope["path"], scope["query_string"], caller, sorted(headers))).encode())
    return digest.digest()


def end_reading(started: StartedAnswer, *, delivered: bool) -> None:
    """Report whether the client has the answer; a failure is one that a retry may repeat."""
    if started.retriable is not None:
        failed = started.stream.error is not None
        started.retriable.end_reading(delivered=delivered and not failed)


def build_request(
    body: ChatBody,
    request: Request,
    services: Services,
    principal: Principal,
    *,
    keyed_body: bytes | None,
    may_retry: bool,
    kept_body: dict[str, Any] | None = None,
    background: bool = False,
) -> AnswerRequest:
    """`keyed_body`: the body of a request with an idempotency key.

    `kept_body`: of a request whose response can be retrieved.
    """
    settings = services.settings
    endpoint = request.scope["route"].path
    return AnswerRequest(
        prompt=body.prompt,
        grounded=body.grounded,
        endpoint=endpoint,
        user_id=principal.user_id,
        key_id=principal.key_id,
        subjects=principal.quota_subjects,
        principal=principal,
        sees=principal.visible_user_id,
        request_id=request.scope["request_id"],
        trace_headers=read_trace_headers(request) if settings.tracing else {},
        stream=body.stream,
        model=body.model,
        max_tokens=body.max_tokens,
        documents=body.documents,
        history=body.history,
        chat=body.call,
        retry_seconds=settings.retry_seconds if may_retry else None,
        body=kept_body,
        stored=body.store,
        background=background,
        body_hash=None
        if keyed_body is None
        else hashlib.sha256(endpoint.encode() + b"\0" + keyed_body).hexdigest(),
    )


def build_headers(
    answer_request: AnswerRequest, started: StartedAnswer, services: Services
) -> dict[str, str]:
    """The headers of an answer: its limits, and whether it is a replay."""
    headers = dict(REPLAYED) if started.replayed else {}
    if any(subject.limits for subject in answer_request.subjects):
        headers |= build_quota_headers(answer_request, services)
        headers |= create_rate_headers(services.quota.windows(answer_request.subjects))
    if (tokens_max := started.stream.completion_tokens_max) is not None:
        headers["x-kotae-max-tokens"] = str(tokens_max)
    return headers


def create_failure(request: Request, started: StartedAnswer, headers: dict[str, str]) -> Response:
    """The error of an answer that failed before its first chunk."""
    stream = started.stream
    error, outcome = stream.error, stream.outcome
    assert error is not None  # noqa: S101 - the caller has checked it
    assert outcome is not None  # noqa: S101
    error.extra["answer_id"] = stream.intent.id
    return create_problem_response(
        error,
        request.scope,
        headers,
        may_be_billed=outcome.usage_source is not UsageSource.NONE,
    )


def get_documents_url(request: Request) -> str:
    """The URL under which documents are."""
    return f"{request.base_url}ai/documents/"
