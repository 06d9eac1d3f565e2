"""The fast path for questions returns what FastAPI's path returns."""

from typing import Any

import pytest

from tests.conftest import Service, shared_loop
from tests.fakes.provider import ProviderFake
from tests.streams import FREE

FAST, SLOW = (
    "application/json",
    "application/vnd.kotae+json",
)  # FastAPI reads both, the fast path only the first
SAME = (
    "response",
    "status",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "endpoint",
    "user_id",
    "grounded",
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 7, "temperature": 0.5, "model": "other"},
        {"user_id": "alice"},
        {"prompt": "返品は？"},
    ],
    ids=repr,
)
async def test_both_paths_give_the_same_answer(
    service: Service, fake: ProviderFake, fields: dict[str, Any]
) -> None:
    """The same body gets the same answer, and the provider receives the same request."""
    fast, slow = [
        (
            await service.client.post(
                "/ai/test", json=FREE | fields, headers={"Content-Type": content_type}
            )
        ).json()
        for content_type in (FAST, SLOW)
    ]

    assert {name: fast[name] for name in SAME} == {name: slow[name] for name in SAME}
    assert fake.calls[0].body == fake.calls[1].body


@shared_loop
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"prompt": 1}', b'{"prompt": "x", "unknown": 1}', b"\xff", b"[" * 100_000],
    ids=lambda body: repr(body[:9]),
)
async def test_both_paths_refuse_the_same_bodies(
    shared_service: Service, shared_fake: ProviderFake, content: bytes
) -> None:
    """A body that the fast path does not accept is refused with FastAPI's errors."""
    fast, slow = [
        (
            await shared_service.client.post(
                "/ai/test", content=content, headers={"Content-Type": content_type}
            )
        ).json()
        for content_type in (FAST, SLOW)
    ]

    assert (fast["status"], fast["code"], fast.get("errors")) == (
        slow["status"],
        slow["code"],
        slow.get("errors"),
    )
    assert fast["status"] in {400, 422}
    assert shared_fake.calls == []
