"""The recorder: queue, quota and metrics get the same outcomes."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.core.accounting.journal import Journal
from service.core.accounting.queue import JournaledQueue
from service.core.accounting.recorder import Recorder
from service.core.ports import QuotaSubject
from service.core.pricing import Usage
from service.core.quota.local import LocalQuota
from service.core.records import Outcome, Status, UsageSource
from service.core.telemetry import Metrics
from tests.conftest import Service
from tests.records import build_intent, build_outcome

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}
NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0)


class RecorderFixture:
    """A recorder with a queue, a quota and metrics."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.queue = JournaledQueue(100, Journal(folder, None, sync_ms=5, bytes_max=2**25))
        self.ledger, self.metrics = LocalQuota(60), Metrics()
        self.recorder = Recorder(self.queue, self.ledger, self.metrics)

    def record(self, **fields: Any) -> Outcome:
        """Record the intent and the outcome of an answer."""
        ended = build_outcome(build_intent(model=fields.pop("model", "m")), **fields)
        self.recorder.record_intent(ended.intent)
        self.recorder.record_outcome(ended)
        return ended

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def fixture(tmp_path: Path) -> RecorderFixture:
    """A recorder per test."""
    return RecorderFixture(tmp_path / "journal")


async def test_an_outcome_settles_its_hold(fixture: RecorderFixture) -> None:
    """The hold is replaced by the usage."""
    intent = build_intent()
    await fixture.ledger.hold(
        intent.id, [QuotaSubject("alice", "user", None)], tokens=1000, nano_usd=None
    )
    fixture.recorder.record_intent(intent)
    fixture.recorder.record_outcome(build_outcome(intent))

    assert fixture.ledger.get_usage("alice")["tokens_per_day"] == (15, 0)


def test_an_outcome_that_holds_nothing_is_recorded(fixture: RecorderFixture) -> None:
    """An embedding call, which no quota is charged for, is recorded like an answer."""
    fixture.record()

    assert fixture.queue.statistics().waiting == 1
    assert fixture.ledger.statistics().holds == 0


def test_tokens_and_cost_are_counted(fixture: RecorderFixture) -> None:
    """The metrics are the sum of the outcomes."""
    fixture.record()
    fixture.record()

    assert fixture.metric("kotae_tokens_total", kind="prompt") == 20
    assert fixture.metric("kotae_tokens_total", kind="completion") == 10
    assert fixture.metric("kotae_cost_usd_total") == pytest.approx(2 * 1500 / 1e9)


def test_an_answer_without_usage_is_not_unpriced(fixture: RecorderFixture) -> None:
    """Only known tokens without a price count as unpriced."""
    fixture.record(
        usage=None, usage_source=UsageSource.UNKNOWN, cost_nano_usd=None, status=Status.TIMEOUT
    )
    fixture.record(
        usage=NO_USAGE, usage_source=UsageSource.NONE, cost_nano_usd=0, status=Status.NO_CONTEXT
    )

    assert fixture.metric("kotae_unpriced_answers_total") == 0


def test_a_missing_price_is_logged_once_per_model(fixture: RecorderFixture) -> None:
    """Every such answer is counted, and the first of each model is logged."""
    with capture_logs() as logs:
        for model in ("a", "a", "b"):
            fixture.record(model=model, cost_nano_usd=None, price=None)

    assert fixture.metric("kotae_unpriced_answers_total") == 3
    assert [entry["model"] for entry in logs if entry["event"] == "model.unpriced"] == ["a", "b"]


async def test_an_unpriced_model_costs_null(service: Service) -> None:
    """Unknown is null and counted, never 0."""
    assert (await service.client.post("/ai/test", json=FREE)).json()["estimated_cost"] is None
    assert b"kotae_unpriced_answers_total 1.0" in (await service.client.get("/metrics")).content
