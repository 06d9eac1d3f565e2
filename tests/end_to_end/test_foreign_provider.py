"""A third-party provider fake, as a second implementation of the protocol."""

from typing import Any

import pytest

from tests.conftest import Serve
from tests.sse import collect, text_of

pytestmark = pytest.mark.slow

FREE = {"prompt": "Say something.", "grounded": False}


async def ask(serve: Serve, llmock: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return (payload of the last event, streamed text, row) of one streamed answer."""
    service = await serve(
        openai_base_url=llmock.base_url(),
        openai_api_key="x",
        model="gpt-4o-mini",
        provider_idle_seconds=1,
    )
    async with service.client.stream("POST", "/ai/stream", json=FREE) as response:
        events = await collect(response)
    return events[-1].json, text_of(events), await service.row()


async def test_an_answer_without_faults(serve: Serve, llmock: Any) -> None:
    """Text, usage and price are recorded."""
    done, text, row = await ask(serve, llmock)

    assert (done["status"], row["usage_source"]) == ("completed", "provider")
    assert text == row["response"] != ""
    assert row["total_tokens"] > 0
    assert float(row["estimated_cost"]) > 0


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("truncate", "provider_error", "provider_cut"),
        ("disconnect", "provider_error", "provider_cut"),
        ("corrupt", "provider_error", "provider_invalid"),
        ("stall", "timeout", "provider_timeout"),
    ],
)
async def test_faults_in_the_stream(
    serve: Serve, llmock: Any, fault: str, status: str, code: str
) -> None:
    """Each ends in a failure event with its code and one row with its status."""
    getattr(llmock, fault)()

    failure, text, row = await ask(serve, llmock)

    assert failure["code"] == row["error_code"] == code
    assert row["status"] == status
    assert row["response"] == text


async def test_a_rate_limit_is_retried(serve: Serve, llmock: Any) -> None:
    """Two refusals that ask for a short wait, then an answer: three attempts, one row."""
    llmock.rate_limit(times=2, retry_after=0)

    done, _, row = await ask(serve, llmock)

    assert (done["status"], row["attempts"]) == ("completed", 3)
