"""Fast path for questions: the body is read here, and the endpoint is called directly.

FastAPI documents these routes. To call one, it walks a dependency graph, two exit stacks and an
exception wrapper, which took longer than everything that the service does for an answer
(docs/explanation/performance.md).
"""

import re
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.types import Receive, Scope, Send

from service.api.dependencies import require_role
from service.api.json_bodies import BodyRoute, read_model
from service.api.relaying import BodyRecorder, OwnerResponse, relay_request
from service.api.schemas import AskBody
from service.core.auth import principals
from service.core.errors import InvalidRequest, OwnedElsewhere

KEY = re.compile(r"[\x21-\x7e]{1,255}")

authorize_ask = require_role(principals.Role.USER, principals.Scope.ASK)
authorize_any_query = require_role(principals.Role.USER, principals.Scope.ASK, any_query=True)


async def read_idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Repeating a request with the same key returns the same answer. 1 to 255 "
            "visible ASCII characters.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        ),
    ] = None,
) -> str | None:
    """The idempotency key of a request, if any. Raises `InvalidRequest`."""
    if key is not None and (
        not KEY.fullmatch(key) or len(request.headers.getlist("Idempotency-Key")) > 1
    ):
        raise InvalidRequest(
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters"
        )
    return key


KeyDep = Annotated[str | None, Depends(read_idempotency_key)]


class AskRoute(BodyRoute):
    """A route whose POST endpoint takes an `AskBody`.

    Its parameters are `(body, request, services, principal, key)`.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that this route matches."""
        if self.body_field is None or scope["method"] != "POST":
            if not await relay_request(scope, receive, send):
                await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        principal = await authorize_ask(request)
        header = request.headers.get("idempotency-key")
        if header is not None:
            request = Request(scope, recorder := BodyRecorder(receive))
        body = await read_model(request, AskBody, principal.user_id)
        key = await read_idempotency_key(request, header)
        services = request.state.services
        try:
            response = await self.endpoint(
                body=body, request=request, services=services, principal=principal, key=key
            )
        except OwnedElsewhere as error:
            response = OwnerResponse(services, principal, error, b"".join(recorder.parts))
        await response(scope, receive, send)
