"""Waiting for a task while the client is connected."""

import asyncio
from typing import Any

from starlette.types import Message, Scope

from service.api.waiting import wait_done


class Client:
    """What the server gives the application: `receive`, woken by `kotae.wake` or a disconnect."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._connected = True
        self.scope: Scope = {"kotae.wake": self._event.set}

    def disconnect(self) -> None:
        """Close the connection."""
        self._connected = False
        self._event.set()

    async def receive(self) -> Message:
        """Wait; then an empty part of the body, or the disconnect."""
        await self._event.wait()
        self._event.clear()
        return {"type": "http.request" if self._connected else "http.disconnect"}


async def start_wait(result: asyncio.Future[Any]) -> tuple[Client, asyncio.Task[None]]:
    """Wait for a task that ends with this future."""

    async def work() -> None:
        await result

    client = Client()
    waiting = asyncio.create_task(
        wait_done(client.scope, client.receive, asyncio.create_task(work()))
    )
    await asyncio.sleep(0)
    assert not waiting.done()
    return client, waiting


async def test_the_end_of_the_task_ends_the_wait() -> None:
    """The client need not send anything."""
    result = asyncio.get_running_loop().create_future()
    _, waiting = await start_wait(result)
    result.set_result(None)
    await asyncio.wait_for(waiting, 5)


async def test_a_disconnect_ends_the_wait() -> None:
    """The task continues: the caller decides about it."""
    result = asyncio.get_running_loop().create_future()
    client, waiting = await start_wait(result)
    client.disconnect()
    await asyncio.wait_for(waiting, 5)
    assert not result.done()
    result.set_result(None)


async def test_a_wake_alone_does_not_end_the_wait() -> None:
    """An event of an earlier wait may still be set."""
    result = asyncio.get_running_loop().create_future()
    client, waiting = await start_wait(result)
    client.scope["kotae.wake"]()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    result.set_result(None)
    await asyncio.wait_for(waiting, 5)
