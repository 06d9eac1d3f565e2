"""`POST /mcp`: the Model Context Protocol, without sessions.

This module authenticates; `mcp_tools` speaks the protocol. The origin is checked for all routes
(`api/middleware.py`), as the protocol demands.
"""

import asyncio
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from starlette.types import Message

from service.api.answers import CLIENT_CLOSED_REQUEST
from service.api.dependencies import AnyPrincipal
from service.api.json_bodies import read_body, replay_body
from service.api.waiting import wait_done
from service.core.errors import InvalidRequest
from service.core.lazy import LazyModule, load_module

if TYPE_CHECKING:
    from service.api import mcp_tools
else:
    mcp_tools = LazyModule("service.api.mcp_tools")

router = APIRouter()


@router.post("/mcp", include_in_schema=False)
async def serve_mcp(request: Request, principal: AnyPrincipal) -> Response:
    """Serve one message of a client. A tool call ends when the client disconnects."""
    if "idempotency-key" in request.headers:
        raise InvalidRequest("Idempotency-Key is not supported here")
    raw = await read_body(request, principal.user_id)
    await anyio.to_thread.run_sync(load_module, mcp_tools)
    messages: list[Message] = []

    async def collect(message: Message) -> None:
        messages.append(message)

    scope = {**request.scope, mcp_tools.PRINCIPAL: principal}
    serving = asyncio.create_task(
        mcp_tools.serve_message(scope, replay_body(raw, request.receive), collect), name="mcp"
    )
    try:
        await wait_done(request.scope, request.receive, serving)
    finally:
        serving.cancel()  # no effect if it is done
    if not serving.done() or serving.cancelled():
        await asyncio.wait([serving])
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    serving.result()
    start, *bodies = messages
    response = Response(b"".join(m.get("body", b"") for m in bodies), start["status"])
    response.raw_headers = list(start["headers"])
    return response
