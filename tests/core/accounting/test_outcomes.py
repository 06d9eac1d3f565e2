"""Outcomes: usage sources, costs, and exactly one outcome per answer."""

import ast
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.core import tokens
from service.core.accounting.journal import Journal
from service.core.accounting.outcomes import AnswerAccount, build_interrupted
from service.core.accounting.queue import JournaledQueue
from service.core.accounting.recorder import Recorder
from service.core.errors import ProviderBusy, ProviderError, ProviderTimeout, ProviderUnreachable
from service.core.pricing import ChargeTerms, CustomerPrice, PriceBook, Usage
from service.core.provider_file import ModelPrice
from service.core.quota.local import LocalQuota
from service.core.records import Message, Outcome, Passage, Status, UsageSource
from service.core.telemetry import Metrics
from tests.records import build_intent
from tests.sources import parse_service

MESSAGES = [Message("user", "Why?")]
PRICES = PriceBook({"m": ModelPrice(input=Decimal(1), output=Decimal(2))})
REPORTED = Usage(prompt_tokens=10, completion_tokens=5)
OpenAccount = Callable[..., AnswerAccount]


@pytest.fixture
def queue(tmp_path: Path) -> JournaledQueue:
    """A record queue whose journal is not synced by a thread."""
    (tmp_path / "journal").mkdir()
    return JournaledQueue(100, Journal(tmp_path / "journal", None, sync_ms=5, bytes_max=2**25))


@pytest.fixture
def open_account(queue: JournaledQueue) -> OpenAccount:
    """A function that opens accounts of answers; keyword arguments are fields of the intent."""
    recorder = Recorder(queue, LocalQuota(60), Metrics())

    def open_account(
        attempts: int = 1,
        *,
        sent: bool = True,
        find_sources: Callable[[str], list[Passage]] | None = None,
        **fields: Any,
    ) -> AnswerAccount:
        intent = build_intent(**fields)
        recorder.record_intent(intent)
        account = AnswerAccount(
            intent,
            MESSAGES,
            recorder,
            PRICES,
            completion_tokens_max=100,
            started=time.perf_counter(),
            find_sources=find_sources,
        )
        for _ in range(attempts):
            account.begin_attempt("default", intent.model)
        if sent:
            account.mark_sent()
        return account

    return open_account


def end_attempts(account: AnswerAccount, *errors: ProviderError | None) -> None:
    """End one attempt per error."""
    for n, error in enumerate(errors):
        if n:
            account.begin_attempt("default", account.model)
        account.end_attempt(error)


@pytest.mark.parametrize("status", Status)
def test_a_reported_usage_is_recorded_as_reported(
    open_account: OpenAccount, status: Status
) -> None:
    """Reported tokens are recorded unchanged and priced, for every status."""
    account = open_account()
    account.usage = Usage(prompt_tokens=10, completion_tokens=500)
    outcome = account.finish(status, "Because.")

    assert (outcome.usage_source, outcome.usage) == (UsageSource.PROVIDER, account.usage)
    assert outcome.cost_nano_usd == 10 * 1000 + 500 * 2000


@pytest.mark.parametrize("errors", [[], [ProviderUnreachable()], [ProviderUnreachable()] * 3])
@pytest.mark.parametrize(
    "status", [Status.PROVIDER_ERROR, Status.TIMEOUT, Status.STOPPED, Status.INTERRUPTED]
)
def test_without_a_request_nothing_was_used(
    open_account: OpenAccount, errors: list[ProviderError], status: Status
) -> None:
    """Without a connected attempt: `none`, 0 tokens and cost 0, even without a price."""
    account = open_account(model="no-such-model", sent=False)
    end_attempts(account, *errors)
    outcome = account.finish(status)

    assert outcome.usage_source is UsageSource.NONE
    assert outcome.usage == Usage(prompt_tokens=0, completion_tokens=0)
    assert (outcome.cost_nano_usd, outcome.price) == (0, None)


@pytest.mark.parametrize(
    "status", [Status.PROVIDER_ERROR, Status.TIMEOUT, Status.STOPPED, Status.INTERRUPTED]
)
def test_a_sent_attempt_may_have_been_billed(open_account: OpenAccount, status: Status) -> None:
    """An unfinished attempt that was sent: usage `unknown`, no tokens, no cost."""
    account = open_account(sent=False)
    end_attempts(account, ProviderUnreachable())
    account.attempts += 1
    account.mark_sent()
    outcome = account.finish(status)

    assert (outcome.usage_source, outcome.usage) == (UsageSource.UNKNOWN, None)
    assert (outcome.cost_nano_usd, outcome.price, outcome.attempts) == (None, None, 2)


def test_an_attempt_without_a_connection_used_nothing(open_account: OpenAccount) -> None:
    """An unfinished attempt that was not sent: usage `none`, and it is counted."""
    account = open_account(sent=False)
    end_attempts(account, ProviderUnreachable())
    account.attempts += 1
    outcome = account.finish(Status.STOPPED)

    assert (outcome.usage_source, outcome.attempts) == (UsageSource.NONE, 2)


def test_a_usage_reported_in_parts_is_combined(open_account: OpenAccount) -> None:
    """A later report with zeros does not erase an earlier one."""
    account = open_account()
    account.report_usage(REPORTED)
    account.report_usage(Usage(prompt_tokens=0, completion_tokens=7))
    outcome = account.finish(Status.COMPLETED, "Because.")

    assert outcome.usage == Usage(prompt_tokens=10, completion_tokens=7)
    assert outcome.usage_source is UsageSource.PROVIDER


async def test_text_after_the_last_report_is_estimated(open_account: OpenAccount) -> None:
    """A usage that is older than the text gives the prompt tokens and a lower bound."""
    text = "Because it is so, and has been so for a long time."
    account = open_account()
    account.report_usage(Usage(prompt_tokens=1000, completion_tokens=1, cached_tokens=200))
    account.usage_is_current = False
    outcome = account.finish(
        Status.CLIENT_GONE, text, estimate=await account.estimate_usage(Status.CLIENT_GONE, text)
    )

    assert outcome.usage_source is UsageSource.ESTIMATED
    assert outcome.usage is not None
    assert (outcome.usage.prompt_tokens, outcome.usage.cached_tokens) == (1000, 200)
    assert outcome.usage.completion_tokens == tokens.count_tokens(text, "m")


def test_an_estimate_is_never_below_the_report(open_account: OpenAccount) -> None:
    """Reasoning is billed and not part of the text."""
    account = open_account()
    account.report_usage(Usage(prompt_tokens=10, completion_tokens=90, reasoning_tokens=80))
    account.usage_is_current = False
    outcome = account.finish(Status.CLIENT_GONE, "Because")

    assert outcome.usage == Usage(prompt_tokens=10, completion_tokens=90, reasoning_tokens=80)


def test_a_refused_attempt_may_have_been_billed(open_account: OpenAccount) -> None:
    """One attempt that reached the provider is enough for `unknown`."""
    account = open_account(sent=False)
    end_attempts(account, ProviderBusy(), ProviderUnreachable())

    assert account.finish(Status.PROVIDER_ERROR).usage_source is UsageSource.UNKNOWN


@pytest.mark.parametrize(
    "status", [status for status in Status if status not in {Status.NO_CONTEXT, Status.INTERRUPTED}]
)
async def test_text_without_a_usage_is_counted(open_account: OpenAccount, status: Status) -> None:
    """An estimate is the tokenizer's count of the prompt and of the text received."""
    account = open_account()
    estimate = await account.estimate_usage(status, "Because it is.")
    outcome = account.finish(status, "Because it is.", estimate=estimate)

    assert outcome.usage_source is UsageSource.ESTIMATED
    assert outcome.usage == await tokens.estimate_usage(MESSAGES, "Because it is.", "m")


async def test_interrupted_answers_are_approximated(
    open_account: OpenAccount,
) -> None:
    """An interrupted answer is estimated from the length of its texts."""
    account = open_account()
    assert await account.estimate_usage(Status.INTERRUPTED, "Because it is.") is None
    outcome = account.finish(Status.INTERRUPTED, "Because it is.")

    assert outcome.usage_source is UsageSource.ESTIMATED
    assert outcome.usage == Usage(
        prompt_tokens=tokens.approximate_tokens("Why?"),
        completion_tokens=tokens.approximate_tokens("Because it is."),
    )


@pytest.mark.parametrize("estimate", [None, Usage(prompt_tokens=3, completion_tokens=5000)])
def test_an_estimate_is_bounded_by_the_limit_of_the_request(
    open_account: OpenAccount, estimate: Usage | None
) -> None:
    """Estimated completion tokens never exceed `max_tokens`."""
    outcome = open_account().finish(Status.CLIENT_GONE, "word " * 1000, estimate=estimate)

    assert outcome.usage is not None
    assert outcome.usage.completion_tokens == 100


def test_a_model_without_a_price_has_no_cost(open_account: OpenAccount) -> None:
    """The cost is None, never 0."""
    account = open_account(model="no-such-model")
    account.usage = REPORTED
    outcome = account.finish(Status.COMPLETED, "Because.")

    assert (outcome.cost_nano_usd, outcome.price) == (None, None)


async def test_an_answer_is_recorded_once(open_account: OpenAccount, queue: JournaledQueue) -> None:
    """`finish` is idempotent: however often it is called, the first outcome is the one recorded."""
    account = open_account()
    account.usage = REPORTED
    first = account.finish(Status.COMPLETED, "Because.")
    account.usage = None
    second = account.finish(Status.INTERRUPTED, "", "shutting_down")

    assert second is first
    assert await queue.take_batch(10) == [first]


PASSAGE = Passage(1, "d", "c", "title", "text")


def find_sources(text: str) -> list[Passage]:
    """Return the passage if the text cites it."""
    return [PASSAGE] if "[1]" in text else []


@pytest.mark.parametrize("text", ["Because [1].", "word " * 20_000 + "[1]"], ids=["short", "long"])
async def test_sources_are_read_before_the_end(open_account: OpenAccount, text: str) -> None:
    """The caller's function decides which passages an answer cites."""
    account = open_account(find_sources=find_sources)
    await account.read_sources(text)

    assert account.finish(Status.COMPLETED, text).sources == [PASSAGE]


def test_a_cancelled_answer_has_the_sources_of_its_beginning(open_account: OpenAccount) -> None:
    """Where nothing can be awaited, a bounded part of the text is read."""
    cited = open_account(find_sources=find_sources)
    long = open_account(find_sources=find_sources)

    assert cited.finish(Status.INTERRUPTED, "Because [1].").sources == [PASSAGE]
    assert long.finish(Status.INTERRUPTED, "word " * 20_000 + "[1]").sources == []


@pytest.mark.parametrize(("model", "cost"), [("m", 99 * 2000), ("no-such-model", None)])
def test_the_rest_of_an_answer_has_a_price(
    open_account: OpenAccount, model: str, cost: int | None
) -> None:
    """The remaining cost is that of the limit less the text; None without a price."""
    assert open_account(model=model).remaining_cost_max("word") == cost


def test_an_answer_whose_process_died_is_unknown() -> None:
    """Recovery writes neither tokens nor a cost for an intent without an outcome."""
    outcome = build_interrupted(build_intent())

    assert (outcome.status, outcome.usage_source) == (Status.INTERRUPTED, UsageSource.UNKNOWN)
    assert (outcome.usage, outcome.cost_nano_usd, outcome.error_code) == (
        None,
        None,
        "shutting_down",
    )


def test_outcomes_are_constructed_in_one_module() -> None:
    """No other module of the service calls `Outcome`; rows and records are decoded by msgspec."""
    assert issubclass(Outcome, msgspec.Struct)
    constructing = {
        module
        for module, tree in parse_service().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Outcome"
    }

    assert constructing == {"core/accounting/outcomes.py"}


def test_attempts_are_priced_at_their_own_model(open_account: OpenAccount) -> None:
    """What the first provider reported before it failed is added at its own price."""
    account = open_account(sent=False)
    account.begin_attempt("second", "no-such-model")
    account.mark_sent()
    account.report_usage(REPORTED)
    account.end_attempt(ProviderError())
    account.begin_attempt("third", "m")
    account.report_usage(Usage(prompt_tokens=1, completion_tokens=1))
    outcome = account.finish(Status.COMPLETED, "Because.")

    assert outcome.attempt_list
    first, second, third = outcome.attempt_list
    assert (first.usage_source, second.usage, second.cost_nano_usd) == ("none", REPORTED, None)
    assert (third.provider, third.model, third.cost_nano_usd) == ("third", "m", 3000)
    assert outcome.usage == Usage(prompt_tokens=11, completion_tokens=6)
    assert (outcome.cost_nano_usd, outcome.price) == (None, None)
    assert (outcome.provider, outcome.provider_model) == ("third", None)


@pytest.mark.parametrize(
    ("error", "unbilled", "source"),
    [
        (ProviderUnreachable(), True, UsageSource.NONE),
        (ProviderBusy(), True, UsageSource.UNKNOWN),
        (ProviderTimeout(), False, UsageSource.ESTIMATED),
    ],
)
def test_an_attempt_that_another_one_follows(
    open_account: OpenAccount, error: ProviderError, unbilled: bool, source: UsageSource
) -> None:
    """What may have been billed is estimated and added; what was not billed adds nothing."""
    account = open_account(sent=not isinstance(error, ProviderUnreachable))
    account.end_attempt(error)
    account.begin_attempt("second", "m")
    account.report_usage(REPORTED)
    outcome = account.finish(Status.COMPLETED, "Because.")

    assert outcome.attempt_list
    first, second = outcome.attempt_list
    assert (first.unbilled, first.usage_source) == (unbilled, source)
    assert outcome.usage
    added = first.usage.prompt_tokens if first.usage else 0
    assert outcome.usage.prompt_tokens == REPORTED.prompt_tokens + added
    assert (added > 0) is (not unbilled)
    assert outcome.cost_nano_usd == (first.cost_nano_usd or 0) + (second.cost_nano_usd or 0)


def test_failed_attempts_leave_the_usage_unknown(open_account: OpenAccount) -> None:
    """An answer that no provider accepted is unknown, never a silent 0."""
    account = open_account()
    account.end_attempt(ProviderBusy())
    account.begin_attempt("second", "m")
    account.end_attempt(ProviderBusy())
    outcome = account.finish(Status.PROVIDER_ERROR, error_code="provider_busy")

    assert (outcome.usage_source, outcome.usage) == (UsageSource.UNKNOWN, None)
    assert [attempt.unbilled for attempt in outcome.attempt_list or ()] == [True, True]


TERMS = ChargeTerms(
    prepaid=True,
    markup=Decimal("1.5"),
    prices={"n": CustomerPrice(input=Decimal(10), output=Decimal(20))},
)


def test_attempts_are_charged_at_their_own_terms(open_account: OpenAccount) -> None:
    """The charge is the sum over the attempts: by the price of the model, or the markup."""
    account = open_account(sent=False, terms=TERMS)
    account.begin_attempt("second", "n")
    account.mark_sent()
    account.report_usage(REPORTED)
    account.end_attempt(ProviderError())
    account.begin_attempt("third", "m")
    account.report_usage(Usage(prompt_tokens=1, completion_tokens=1))
    outcome = account.finish(Status.COMPLETED, "Because.")

    assert outcome.cost_nano_usd is None
    assert outcome.charge_nano_usd == 10 * 10_000 + 5 * 20_000 + 3000 * 3 // 2


def test_a_charge_is_unknown_or_zero_like_the_usage(open_account: OpenAccount) -> None:
    """Unknown usage has no charge; without a call it is 0; without terms there is none."""
    unknown = open_account(terms=TERMS).finish(Status.TIMEOUT)
    refused = open_account(0, sent=False, terms=TERMS).finish(Status.NO_CONTEXT, "No.")
    unpriced = open_account(terms=TERMS, model="no-such-model")
    unpriced.usage = REPORTED
    free = open_account()
    free.usage = REPORTED
    outcomes = (unpriced.finish(Status.COMPLETED), free.finish(Status.COMPLETED))

    assert (unknown.usage_source, unknown.charge_nano_usd) == ("unknown", None)
    assert (refused.usage_source, refused.charge_nano_usd) == ("none", 0)
    assert [outcome.charge_nano_usd for outcome in outcomes] == [None, None]
