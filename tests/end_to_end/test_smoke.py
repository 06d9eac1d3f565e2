"""The service as `make run` starts it: one process, from an empty folder to a clean exit."""

import asyncio
import signal
from pathlib import Path

from tests.process import serving
from tests.sse import collect, text_of

QUESTION = {"prompt": "How many days do I have to return a product?"}


async def test_a_fresh_service_answers_streams_and_ends(tmp_path: Path) -> None:
    """`kotae serve --migrate --seed` answers and streams from the samples, and exits with 0."""
    async with serving(tmp_path, "--migrate", "--seed") as service:
        async with asyncio.timeout(20):
            while (answer := (await service.client.post("/ai/test", json=QUESTION)).json())[
                "status"
            ] != "completed":
                await asyncio.sleep(0.05)
        async with service.client.stream("POST", "/ai/stream", json=QUESTION) as response:
            events = await collect(response)
        page = await service.client.get("/")
        service.signal(signal.SIGTERM)
        status = await service.wait()

    assert "30" in answer["response"]
    assert answer["sources"]
    assert text_of(events) == answer["response"]
    assert page.status_code == 200
    assert status == 0
