"""How a question comes in: the short way for those that are as they should be.

FastAPI documents these routes and says what is wrong with a request. To call them it walks a graph of dependencies, two
exit stacks and an exception wrapper each time, which took longer than all that the service itself does for an answer
(docs/explanation/performance.md). So a request whose body is an `AskBody` at first sight goes straight to the endpoint, with what
its signature names; any other goes FastAPI's way, from the beginning, and is refused in its words.
"""

import json
import re
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.api.dependencies import require_role
from service.api.schemas import AskBody
from service.core.auth import principals
from service.core.errors import InvalidRequest

KEY = re.compile(r"[\x21-\x7e]{1,255}")

asking = require_role(principals.Role.USER, principals.Scope.ASK)


async def read_idempotency_key(
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
    if given is not None and (
        not KEY.fullmatch(given) or len(request.headers.getlist("Idempotency-Key")) > 1
    ):
        raise InvalidRequest(
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters"
        )
    return given


KeyDep = Annotated[str | None, Depends(read_idempotency_key)]


class AskRoute(APIRoute):
    """A route; one that has a body takes an `AskBody` and `(body, request, services, principal, key)`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that this route matches."""
        if self.body_field is None or scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            raw = await request.body()
        except ClientDisconnect:
            raise HTTPException(400, "the body ended early") from None
        body = _read(raw, request.headers.get("content-type"))
        if body is None:
            await super().handle(scope, _again(raw, receive), send)
            return
        principal = await asking(request)
        key = await read_idempotency_key(request, request.headers.get("idempotency-key"))
        response = await self.endpoint(
            body=body,
            request=request,
            services=request.state.services,
            principal=principal,
            key=key,
        )
        await response(scope, receive, send)


def _read(raw: bytes, content_type: str | None) -> AskBody | None:
    """The body, if there is nothing to say against it."""
    if content_type is None or content_type.partition(";")[0].strip().lower() != "application/json":
        return None
    try:
        return AskBody.model_validate(json.loads(raw))
    except (ValueError, RecursionError):  # of which pydantic's, json's and Unicode's errors are
        return None


def _again(raw: bytes, receive: Receive) -> Receive:
    """A `receive` that has not been read yet."""
    unread = [raw]

    async def first_the_body() -> Message:
        return (
            {"type": "http.request", "body": unread.pop(), "more_body": False}
            if unread
            else await receive()
        )

    return first_the_body
