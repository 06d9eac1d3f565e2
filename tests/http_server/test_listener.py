"""The additional listener."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from service.core.errors import SettingsInvalid
from service.http_server.connections import HttpLimits
from service.http_server.listener import Listener
from tests.conftest import http_client


async def respond(scope: Scope, _: Receive, send: Send) -> None:
    """Respond with the path."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def test_it_serves_its_own_application() -> None:
    """It listens on the port that it reports, and no longer after its end."""
    listener = Listener("127.0.0.1:0", HttpLimits())
    await listener.start(respond)
    async with http_client(f"http://{listener.address}") as client:
        text = (await client.get("/x")).text
    await listener.close(1)

    assert text == "/x"
    with pytest.raises(OSError):
        await asyncio.open_connection(*listener.address.split(":"))


async def test_a_port_in_use_is_named() -> None:
    """The error names the setting and the address."""
    listener = Listener("127.0.0.1:0", HttpLimits())
    with pytest.raises(SettingsInvalid, match=f"KOTAE_PEER_ADDRESS.*{listener.address}"):
        Listener(listener.address, HttpLimits())
    await listener.close(1)


async def test_requests_in_progress_may_end_before_it_closes() -> None:
    """Closing waits for them, up to a limit."""
    began, release = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await release.wait()
        await respond(scope, receive, send)

    listener = Listener("127.0.0.1:0", HttpLimits())
    await listener.start(wait)
    async with http_client(f"http://{listener.address}") as client:
        request = asyncio.create_task(client.get("/x"))
        await began.wait()
        closing = asyncio.create_task(listener.close(5))
        release.set()
        response = await request
    await closing

    assert response.text == "/x"
