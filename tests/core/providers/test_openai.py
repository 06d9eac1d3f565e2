"""The request that an OpenAI-compatible provider receives, and when it counts as sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from service.core.errors import ProviderUnreachable
from service.core.ports import ProviderRequest
from service.core.providers.openai import OpenAIProvider
from service.core.records import Message
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.streams import post_stream


async def test_the_request_to_the_provider(service: Service, fake: ProviderFake) -> None:
    """It has model, limits, temperature and key, and requests usage; the SDK does not retry."""
    await post_stream(service, model="other", max_tokens=7, temperature=0.5)
    call = fake.calls[0]

    assert (call.body["model"], call.body["max_tokens"], call.body["temperature"]) == (
        "other",
        7,
        0.5,
    )
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.headers["authorization"] == "Bearer sk-test"
    assert call.headers["x-stainless-retry-count"] == "0"


REQUEST = ProviderRequest(
    model="m", messages=[Message("user", "Why?")], max_tokens=9, temperature=None, stream=True
)


class Attempt:
    """An attempt in a task; `sent` is set when it may be billed."""

    def __init__(self, base_url: str) -> None:
        self.provider = OpenAIProvider(
            base_url=base_url, api_key="k", idle_seconds=5, answer_bytes_max=10_000
        )
        self.sent = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self.provider.stream(REQUEST, self.sent.set)) as batches:
            async for _ in batches:
                assert self.sent.is_set()

    async def cancel(self) -> None:
        """Cancel the attempt."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await self.provider.aclose()


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A server that accepts connections and sends nothing: (port, set when it is connected)."""
    connected, closing = asyncio.Event(), asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await closing.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], connected
    closing.set()
    server.close()
    await server.wait_closed()


async def test_a_request_is_sent_before_its_response(fake: ProviderFake) -> None:
    """An attempt that waits for the response may be billed."""
    fake.next(Behaviour(hang_after="request"))
    attempt = Attempt(fake.base_url)
    await asyncio.wait_for(attempt.sent.wait(), 10)

    assert not attempt.task.done()
    await attempt.cancel()


async def test_a_cancelled_connection_has_sent_nothing() -> None:
    """An attempt that is cancelled during the TLS handshake is not billed."""
    async with silent_server() as (port, connected):
        attempt = Attempt(f"https://127.0.0.1:{port}/v1")
        await asyncio.wait_for(connected.wait(), 10)
        await attempt.cancel()

    assert not attempt.sent.is_set()


async def test_an_unreachable_provider_was_sent_nothing(fake: ProviderFake) -> None:
    """An attempt without a connection is not billed."""
    async with fake.away():
        attempt = Attempt(fake.base_url)
        with pytest.raises(ProviderUnreachable):
            await attempt.task

    assert not attempt.sent.is_set()
    await attempt.provider.aclose()


@pytest.mark.parametrize("ending", ["stop", "SIGTERM"])
async def test_streams_that_did_not_reach_the_provider_used_nothing(
    serve: Serve, ending: str
) -> None:
    """Streams that end while they connect, or wait for a call slot, have usage `none`."""
    async with silent_server() as (port, connected):
        service = await serve(
            openai_base_url=f"https://127.0.0.1:{port}/v1", model="m", provider_calls_max=2
        )
        started = [
            (
                await service.client.post("/ai/answers", json={"prompt": "Why?", "grounded": False})
            ).json()["id"]
            for _ in range(5)
        ]
        await asyncio.wait_for(connected.wait(), 10)
        if ending == "stop":
            for answer_id in started:
                await service.client.delete(f"/ai/answers/{answer_id}")
        else:
            service.services.answers.interrupt_all()
        rows = await service.rows()

    assert [(row["usage_source"], row["estimated_cost"]) for row in rows] == [("none", "0")] * 5
