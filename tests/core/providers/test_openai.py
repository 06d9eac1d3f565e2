"""The request that an OpenAI-compatible provider receives."""

from tests.conftest import Service
from tests.fakes.provider import ProviderFake
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
