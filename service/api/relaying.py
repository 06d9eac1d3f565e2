"""Requests about answers of other replicas: forwarding them to the owner, and accepting them.

A request about an answer contains its id, and the id the slot of its owner. `relay_request` checks
the caller, forwards the request once and passes the response through, byte by byte. If the owner
does not respond, the request is answered here, from the row of the answer.

A request with an idempotency key that another replica answers is forwarded with its body
(`OwnerResponse`): the owner attaches it to its answer.

`PeerApplication` is the application of the peer listener. It verifies the signature and passes the
request to the routes, with the caller that the other replica has checked. The routes check again
that the credential is valid and that the caller may see the answer.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import msgspec
from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.dependencies import Services, require_role
from service.api.problems import create_problem_response
from service.api.responses import json_response
from service.api.sse import create_relayed_response
from service.core.auth import principals
from service.core.auth.principals import Principal, Role
from service.core.encoding import create_id, utc_now
from service.core.errors import (
    Forbidden,
    KotaeError,
    NotFound,
    OwnedElsewhere,
    OwnerUnavailable,
    TooLarge,
)
from service.core.fair_share import current_user
from service.core.ports import PeerRequest, PeerResponse, TicketGrant
from service.core.replicas.peers import NoPeers
from service.core.replicas.signatures import (
    FINGERPRINT_HEADER,
    HEADER,
    PREFIX_HEADER,
    REFUSED_HEADER,
    PeerVerifier,
    VerifiedHead,
    select_headers,
)
from service.core.telemetry import log

ID_CHARACTERS = 36
FINGERPRINT = "kotae.fingerprint"  # in the scope: identifies a request that a client may repeat
BODY_BYTES_MAX = 8_388_608  # of a forwarded request
_PEER_PREFIX = "/peer/"  # of requests that replicas do not forward, but make
_PEER_PATHS = re.compile(
    r"/ai/(?:answers(?:/[0-9a-f-]{36}(?:/events)?)?|stream|test)|/v1/chat/completions"
    r"|/v1/responses(?:/resp_[0-9a-f-]{36}(?:/input_items|/cancel)?)?"
)
_EVENTS = b"text/event-stream"
# Of one connection, or set by each replica.
_HOP_HEADERS = {b"connection", b"keep-alive", b"transfer-encoding", b"x-request-id"}
_authorize = require_role(Role.USER, principals.Scope.ASK)


async def relay_request(scope: Scope, receive: Receive, send: Send) -> bool:
    """Answer a request about an answer of another replica, if there is one and it responds.

    Raises the errors of the authentication, `TicketInvalid` and `Overloaded`.
    """
    services: Services = scope["state"]["services"]
    peers = services.peers
    if isinstance(peers, NoPeers):
        return False
    request = Request(scope, receive)
    answer_id = _find_answer_id(request)
    if answer_id is None or (owner := peers.find_owner(answer_id)) is None:
        return False
    ticket = request.query_params.get("ticket")
    if ticket is None:
        principal, caller = await _authorize(request), True
    else:
        principal, caller = build_principal(services.tickets.check(ticket, answer_id)), False
    current_user.set(principal.user_id)
    services.open_requests.require(principal.user_id)
    forwarded = _build_forwarded(scope, principal if caller else None)
    try:
        response = await peers.send(owner, forwarded)
    except OwnerUnavailable:
        return False
    await _pass_through(response, services, principal, scope, receive, send)
    return True


class BodyRecorder:
    """Receives the body of a request with an idempotency key, and remembers it."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.parts = receive, list[bytes]()

    async def __call__(self) -> Message:
        """Receive a message."""
        message = await self._receive()
        self.parts.append(message.get("body", b""))
        return message


class OwnerResponse(Response):
    """The response of the replica that answers a request with the same idempotency key.

    `refusal`: says which answer it is, and is raised if the request came from another replica.
    """

    def __init__(
        self, services: Services, principal: Principal, refusal: OwnedElsewhere, body: bytes = b""
    ) -> None:
        super().__init__()
        self._services, self._principal = services, principal
        self._refusal, self._request_body = refusal, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request. Raises `OwnerUnavailable`."""
        services, principal = self._services, self._principal
        owner = services.peers.find_owner(self._refusal.answer_id)
        if owner is None:
            raise self._refusal
        forwarded = _build_forwarded(scope, principal, self._request_body)
        response = await services.peers.send(owner, forwarded)
        await _pass_through(response, services, principal, scope, receive, send)


def _build_forwarded(scope: Scope, principal: Principal | None, body: bytes = b"") -> PeerRequest:
    """Build the request to the owner. `principal` None: the ticket in the query says who it is."""
    query = scope["query_string"].decode("latin-1")
    headers = select_headers(Headers(scope=scope)) | {"x-request-id": scope["request_id"]}
    headers.pop(FINGERPRINT_HEADER, None)  # a client has no say in it
    # A space at the end would not be part of the value that is received, and was signed.
    headers[PREFIX_HEADER] = f"{scope['scheme']} {scope['root_path']}".rstrip()
    if FINGERPRINT in scope:
        headers[FINGERPRINT_HEADER] = scope[FINGERPRINT].hex()
    return PeerRequest(
        method=scope["method"],
        target=scope["kotae.path"] + (f"?{query}" if query else ""),
        headers=headers,
        body=body,
        principal=msgspec.json.encode(principal) if principal is not None else None,
    )


def _find_answer_id(request: Request) -> str | None:
    """Return the id of the answer that a request is about: in its path, or of the last event."""
    answer_id: str | None = request.path_params.get("answer_id")
    if answer_id is None:
        last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
        answer_id = last[:ID_CHARACTERS] if last else None
    return answer_id if answer_id and len(answer_id) == ID_CHARACTERS else None


def build_principal(grant: TicketGrant) -> Principal:
    """The principal that a ticket was issued to."""
    return Principal(
        user_id=grant.user_id,
        role=Role.ADMIN if grant.sees is None else Role.USER,
        credential=grant.credential,
        key_id=grant.key_id,
        ends_at=grant.ends_at,
    )


async def _pass_through(
    response: PeerResponse,
    services: Services,
    principal: Principal,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Send the response of the owner. A disconnect of the client ends the exchange."""
    headers = [
        (name, value) for name, value in response.headers.items() if name not in _HOP_HEADERS
    ]
    if response.headers.get(b"content-type", b"").startswith(_EVENTS):
        relayed = create_relayed_response(
            response, services.limits, lambda end: enter_reader(services, principal, end)
        )
        relayed.raw_headers = headers
        await relayed(scope, receive, send)
        return
    try:
        parts = []
        while part := await response.read():
            parts.append(part)
    finally:
        await response.close()
    whole = Response(b"".join(parts), response.status)
    whole.raw_headers = headers
    await whole(scope, receive, send)


def enter_reader(
    services: Services, principal: Principal, disconnect: Callable[[], None]
) -> Callable[[], None]:
    """Register a reader; returns the function to call when it has left."""
    unwatch = services.revocation.watch_principal(principal, disconnect)
    services.open_requests.add(principal.user_id)

    def leave() -> None:
        services.open_requests.release(principal.user_id)
        unwatch()

    return leave


class PeerApplication:
    """Accepts requests of other replicas, and nothing else; see the module."""

    def __init__(self, app: ASGIApp, services: Services, verifier: PeerVerifier) -> None:
        self._app, self._verifier = app, verifier
        self._services = replace(services, peers=NoPeers())  # a request is forwarded once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            head = self._verify(scope)
            body = await _read_body(receive)
            head.check_body(body)
        except KotaeError as error:
            log.warning("peer.refused", code=error.code, error=error.detail)
            scope.setdefault("request_id", create_id(utc_now()))
            response = create_problem_response(error, scope, {REFUSED_HEADER: "1"})
            await response(scope, receive, send)
            return
        if scope["path"].startswith(_PEER_PREFIX):
            await self._respond_to_replica(scope, receive, send)
            return
        if fingerprint := Headers(scope=scope).get(FINGERPRINT_HEADER):
            scope[FINGERPRINT] = bytes.fromhex(fingerprint)
        if prefix := Headers(scope=scope).get(PREFIX_HEADER):
            # Responses contain URLs for the client.
            scope["scheme"], _, scope["root_path"] = prefix.partition(" ")
            scope["path"] = scope["root_path"] + scope["path"]
        scope["headers"] = [
            *((name, value) for name, value in scope["headers"] if name != HEADER.encode()),
            (b"sec-fetch-site", b"same-origin"),  # the other replica has checked the origin
        ]
        scope["state"] = {"services": self._with_caller(head.principal)}
        await self._app(scope, _replay_body(body, receive), send)

    def _verify(self, scope: Scope) -> VerifiedHead:
        """Verify the head of a request. Raises `Forbidden`, `NotFound` and `LoopDetected`."""
        if "kotae.refusal" in scope:
            raise scope.pop("kotae.refusal")
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if HEADER not in headers:
            raise Forbidden("this address is for other replicas")
        query = scope["query_string"].decode("latin-1")
        request = PeerRequest(
            method=scope["method"],
            target=scope["path"] + (f"?{query}" if query else ""),
            headers=select_headers(headers),
        )
        head = self._verifier.verify(headers[HEADER], request)
        path = scope["path"]
        if not (path.startswith(_PEER_PREFIX) or _PEER_PATHS.fullmatch(path)):
            raise NotFound("replicas do not use this path")
        return head

    async def _respond_to_replica(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of a replica itself."""
        answers = self._services.answers
        scope["request_id"] = create_id(utc_now())
        operation, _, subject = scope["path"].removeprefix(_PEER_PREFIX).partition("/")
        try:
            match scope["method"], operation:
                case "GET", "alive":
                    response = Response(status_code=204)
                case "GET", "written":
                    await answers.wait_own_written()
                    response = Response(status_code=204)
                case "GET", "retries":
                    fingerprint = bytes.fromhex(subject)
                    response = json_response(answers.find_retriable(fingerprint))
                case "GET", "conversations":
                    response = json_response(await answers.list_conversation_users(subject))
                case "DELETE", "conversations":
                    await answers.stop_conversation(subject)
                    response = Response(status_code=204)
                case _:
                    raise NotFound("replicas do not use this path")
        except KotaeError as error:
            response = create_problem_response(error, scope)
        await response(scope, receive, send)

    def _with_caller(self, caller: bytes | None) -> Services:
        services = self._services
        if caller is None:
            return services
        principal = msgspec.json.decode(caller, type=Principal)
        return replace(services, authenticator=services.authenticator.with_caller(principal))


async def _read_body(receive: Receive) -> bytes:
    """Read a body, whose hash is signed. Raises `TooLarge`."""
    body, is_complete = bytearray(), False
    while not is_complete:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes")
        is_complete = not message.get("more_body", False)
    return bytes(body)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """Receive a body that was read, and then what follows it."""
    sent = False

    async def receive_replayed() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_replayed
