"""Waiting for an answer, a first chunk or a task, but no longer than the client is connected.

`receive` of ASGI waits for the disconnect; `kotae.wake` of our server ends it early, without
cancelling anything. The server also reports the end of the response as a disconnect.
"""

import asyncio
from typing import Any

from fastapi import Request
from starlette.types import Receive, Scope

from service.core.answering.answers import Stream


async def wait_finished(request: Request, stream: Stream) -> None:
    """Wait until the answer has ended or the client has disconnected."""
    wake = request.scope["kotae.wake"]
    with stream.attach_reader():
        stream.add_finish_callback(wake)
        try:
            while stream.outcome is None and await _is_connected(request.receive):
                pass
        finally:
            stream.remove_finish_callback(wake)


async def wait_output(request: Request, stream: Stream, seconds: float) -> bool:
    """Wait for the first chunk, the end, or this time. False if the client has disconnected."""
    loop, wake = asyncio.get_running_loop(), request.scope["kotae.wake"]
    end = loop.time() + seconds
    timer = loop.call_at(end, wake)
    stream.add_output_callback(wake)
    try:
        while not stream.has_output and loop.time() < end:
            if not await _is_connected(request.receive):
                return False
    finally:
        timer.cancel()
        stream.remove_output_callback(wake)
    return True


async def wait_done(scope: Scope, receive: Receive, task: asyncio.Task[Any]) -> None:
    """Wait until the task is done or the client has disconnected."""
    wake = scope["kotae.wake"]
    task.add_done_callback(lambda _: wake())
    while not task.done() and await _is_connected(receive):
        pass


async def _is_connected(receive: Receive) -> bool:
    """Wait for `kotae.wake` (true) or the client's disconnect (false)."""
    message = await receive()
    disconnected: bool = message["type"] == "http.disconnect"
    return not disconnected
