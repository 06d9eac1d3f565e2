"""`POST /v1/chat/completions`."""

import hashlib
from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.api.answers import (
    CLIENT_CLOSED_REQUEST,
    REPLAYED,
    begin_while_connected,
    build_quota_headers,
)
from service.api.dependencies import AnyQueryAskPrincipal, Services, ServicesDep
from service.api.fast_route import KeyDep, authorize_any_query, read_idempotency_key
from service.api.json_bodies import THREAD_BYTES_MIN, read_body
from service.api.openai.chat_body import ChatBody, parse_chat_body
from service.api.openai.chat_format import ChatChunks, build_completion
from service.api.openai.documentation import CHAT_BODY, CHAT_RESPONSES
from service.api.openai.errors import create_rate_headers
from service.api.problems import create_problem_response
from service.api.relaying import BodyRecorder, OwnerResponse
from service.api.responses import json_response
from service.api.sse import create_batches_response
from service.api.waiting import wait_finished, wait_output
from service.core.answering.answers import AnswerRequest, StartedAnswer
from service.core.auth.principals import Principal
from service.core.errors import OwnedElsewhere
from service.core.pricing import format_usd
from service.core.records import UsageSource

RETRY_HEADER = "x-stainless-retry-count"  # of the OpenAI SDKs, which may come back
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


class ChatRoute(APIRoute):
    """A route whose endpoint takes a chat completion request as it was sent."""

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
        key = await read_idempotency_key(request, request.headers.get("idempotency-key"))
        if key is not None:
            request = Request(scope, recorder := BodyRecorder(receive))
        services = request.state.services
        try:
            response = await self.endpoint(
                request=request, services=services, principal=principal, key=key
            )
        except OwnedElsewhere as error:
            response = OwnerResponse(services, principal, error, b"".join(recorder.parts))
        await response(scope, receive, send)


router = APIRouter(prefix="/v1", tags=["openai"], route_class=ChatRoute)


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
    answer_request = _build_request(
        body,
        request,
        services,
        principal,
        keyed_body=raw if key else None,
        may_retry=retry_count is not None,
    )
    with services.open_requests.hold(principal.user_id):
        started = await _begin(request, raw, answer_request, key, retry_count, services)
        if started is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        headers = _build_headers(answer_request, started, services)
        if body.stream:
            return _ChatStreamResponse(body, request, services, principal, started, headers)
        stream = started.stream
        try:
            await wait_finished(request, stream)
        finally:
            _end_reading(started, delivered=stream.outcome is not None)
    if stream.outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if stream.error is not None:
        return _create_failure(request, started, headers)
    if stream.outcome.cost_nano_usd is not None:
        headers["x-kotae-cost"] = format_usd(stream.outcome.cost_nano_usd)
    completion = build_completion(stream, stream.outcome, partial(_get_documents_url, request))
    return json_response(completion, headers=headers)


class _ChatStreamResponse(Response):
    """The chunks of an answer. A failure before the first one is an error response."""

    def __init__(
        self,
        body: ChatBody,
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
        self._chunks = ChatChunks(
            started.stream,
            include_usage=body.include_usage,
            get_documents_url=partial(_get_documents_url, request),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the first chunk, then send the response."""
        delivered, open_requests = False, self._services.open_requests
        open_requests.add(self._user_id)  # the endpoint has just released it
        try:
            delivered = await self._send(scope, receive, send)
        finally:
            open_requests.release(self._user_id)
            _end_reading(self._started, delivered=delivered)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether everything was sent."""
        stream, services = self._started.stream, self._services
        limits = services.limits
        with stream.attach_reader():
            if not await wait_output(self._request, stream, limits.ping_seconds):
                return False  # the client has disconnected
            if stream.error is not None and not stream.has_chunks:
                failure = _create_failure(self._request, self._started, self._extra_headers)
                await failure(scope, receive, send)
                return True
            batches = stream.read_batches(self._chunks.encode_batch)
            response = create_batches_response(batches, limits, self._enter)
            response.headers.update(self._extra_headers)
            await response(scope, receive, send)
            return response.completed


async def _begin(
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
    fingerprint = compute_fingerprint(request.scope, raw, answer_request.principal)
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


def _end_reading(started: StartedAnswer, *, delivered: bool) -> None:
    """Report whether the client has the answer; a failure is one that a retry may repeat."""
    if started.retriable is not None:
        failed = started.stream.error is not None
        started.retriable.end_reading(delivered=delivered and not failed)


def _build_request(
    body: ChatBody,
    request: Request,
    services: Services,
    principal: Principal,
    *,
    keyed_body: bytes | None,
    may_retry: bool,
) -> AnswerRequest:
    """`keyed_body`: the body of a request with an idempotency key."""
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
        stream=body.stream,
        model=body.model,
        max_tokens=body.max_tokens,
        documents=body.documents,
        history=body.history,
        chat=body.call,
        retry_seconds=settings.retry_seconds if may_retry else None,
        body_hash=None
        if keyed_body is None
        else hashlib.sha256(endpoint.encode() + b"\0" + keyed_body).hexdigest(),
    )


def _build_headers(
    answer_request: AnswerRequest, started: StartedAnswer, services: Services
) -> dict[str, str]:
    headers = dict(REPLAYED) if started.replayed else {}
    if any(subject.limits for subject in answer_request.subjects):
        headers |= build_quota_headers(answer_request, services)
        headers |= create_rate_headers(services.quota.windows(answer_request.subjects))
    if (tokens_max := started.stream.completion_tokens_max) is not None:
        headers["x-kotae-max-tokens"] = str(tokens_max)
    return headers


def _create_failure(request: Request, started: StartedAnswer, headers: dict[str, str]) -> Response:
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


def _get_documents_url(request: Request) -> str:
    return f"{request.base_url}ai/documents/"
