"""Many answers at once, some cut by clients: the log compared with the provider's record."""

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from service.core.accounting.log_pages import LogFilter, export_pages
from tests.conftest import Service, http_client
from tests.fakes.provider import Ending, ProviderFake
from tests.sse import events

CONCURRENCY = 100


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(2000, marks=pytest.mark.slow),
        pytest.param(20_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)]),
    ],
)
async def test_every_answer_has_one_row_with_exact_tokens(
    service: Service, fake: ProviderFake, answers: int
) -> None:
    """Of thousands of answers, a fifth cut by clients, each has one row with the exact tokens."""
    choose, gate = random.Random(7), asyncio.Semaphore(CONCURRENCY)
    limits = httpx2.Limits(max_connections=CONCURRENCY * 2)

    async with http_client(service.url, timeout=60, limits=limits) as client:

        async def run_caller(number: int, leave_after: int | None, plain: bool) -> None:
            body = {
                "prompt": f"question {number}" + (" [[gap=0.02]]" if leave_after else ""),
                "grounded": False,
            }
            async with gate:
                if plain:
                    assert (await client.post("/ai/test", json=body)).status_code == 200
                    return
                async with (
                    client.stream("POST", "/ai/stream", json=body) as response,
                    aclosing(events(response)) as stream,
                ):
                    assert response.status_code == 200, await response.aread()
                    names = []
                    async for event in stream:
                        names.append(event.name)
                        if leave_after == len(names):
                            return
                    assert names[-1] == "done"

        plans = [(choose.randint(1, 4) if n % 5 == 0 else None, n % 5 == 1) for n in range(answers)]
        await asyncio.gather(*(run_caller(n, *plan) for n, plan in enumerate(plans)))
    await fake.wait_idle(30)
    await service.wait_idle()

    rows: list[Any] = [
        row async for page in export_pages(service.services.database, LogFilter()) for row in page
    ]
    by_prompt = {row.prompt: row for row in rows}
    calls = {call.prompt: call for call in fake.calls}
    assert len(rows) == len(by_prompt) == answers
    assert len(fake.calls) == len(calls)
    assert calls.keys() <= by_prompt.keys()
    for prompt in (
        by_prompt.keys() - calls.keys()
    ):  # disconnected at the first event, before the provider call
        assert (
            by_prompt[prompt].status,
            by_prompt[prompt].usage_source in {"none", "unknown"},
        ) == ("client_gone", True)
    for prompt, call in calls.items():
        row = by_prompt[prompt]
        if call.ended is Ending.FINISHED and row.usage_source == "provider":
            assert row.status == "completed"
            assert (row.prompt_tokens, row.completion_tokens) == (
                call.usage["prompt_tokens"],
                call.usage["completion_tokens"],
            )
            assert row.response == call.text
        else:
            assert (row.status, row.usage_source) in {
                ("client_gone", "estimated"),
                ("client_gone", "unknown"),
            }
            assert call.text.startswith(row.response)
    statuses = Counter(row.status for row in rows)
    assert statuses.keys() == {"completed", "client_gone"}
    assert statuses["completed"] >= answers * 4 // 5
    assert (
        service.services.queue.statistics().open == service.services.queue.statistics().waiting == 0
    )
