"""Records: charges to quotas, and the answer object."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.pricing import Usage
from service.core.records import (
    Attempt,
    Outcome,
    Status,
    UsageSource,
    compute_row_charge,
    create_answer_object,
    sum_attempts,
)
from tests.records import build_attempt, build_failed_attempt, build_intent, build_outcome

HELD = build_intent(held_tokens=700, held_nano_usd=90)
USAGE = Usage(prompt_tokens=10, completion_tokens=5)


@pytest.mark.parametrize(
    ("record", "charged"),
    [
        (build_outcome(HELD, usage=USAGE, cost_nano_usd=1500), (15, 1500)),
        (
            build_outcome(
                HELD, usage=USAGE, cost_nano_usd=None, usage_source=UsageSource.ESTIMATED
            ),
            (15, 0),
        ),
        (
            build_outcome(HELD, usage=None, cost_nano_usd=None, usage_source=UsageSource.UNKNOWN),
            (700, 90),
        ),
        (
            build_outcome(
                build_intent(), usage=None, cost_nano_usd=None, usage_source=UsageSource.UNKNOWN
            ),
            (0, 0),
        ),
    ],
    ids=["priced", "unpriced", "unknown", "unknown without a hold"],
)
def test_unknown_usage_is_charged_as_held(record: Outcome, charged: tuple[int, int]) -> None:
    """Quotas are charged with the usage or, if unknown, with the hold; rows like records."""
    used = record.usage
    row = {
        "usage_source": record.usage_source,
        "prompt_tokens": used.prompt_tokens if used else None,
        "completion_tokens": used.completion_tokens if used else None,
        "cost_nano_usd": record.cost_nano_usd,
        "held_tokens": record.intent.held_tokens,
        "held_nano_usd": record.intent.held_nano_usd,
    }

    assert record.compute_charge() == compute_row_charge(row) == charged


def test_an_answer_object_without_texts_has_all_other_fields() -> None:
    """The `done` event has the fields of the answer object except prompt and response."""
    record = build_outcome(build_intent(prompt="Why?"))
    whole, lean = (
        msgspec.to_builtins(create_answer_object(record, texts=texts)) for texts in (True, False)
    )

    assert whole == lean | {"prompt": "Why?", "response": "Because."}


def test_unknown_is_null() -> None:
    """Unknown tokens and costs are null in the answer object, never 0."""
    unknown = build_outcome(
        usage=None, cost_nano_usd=None, usage_source=UsageSource.UNKNOWN, status=Status.TIMEOUT
    )
    answer = create_answer_object(unknown)

    assert (
        answer.prompt_tokens,
        answer.completion_tokens,
        answer.total_tokens,
        answer.estimated_cost,
    ) == (None, None, None, None)


COUNTS = st.integers(0, 10**9)
ATTEMPTS = st.one_of(
    st.builds(
        build_attempt,
        usage=st.builds(Usage, prompt_tokens=COUNTS, completion_tokens=COUNTS),
        cost_nano_usd=COUNTS,
        usage_source=st.sampled_from([UsageSource.PROVIDER, UsageSource.ESTIMATED]),
    ),
    st.builds(build_failed_attempt),
    st.builds(
        build_failed_attempt,
        usage_source=st.just(UsageSource.NONE),
        usage=st.just(Usage(prompt_tokens=0, completion_tokens=0)),
        cost_nano_usd=st.just(0),
    ),
)


@given(st.lists(ATTEMPTS, min_size=1, max_size=5))
def test_the_sum_of_attempts_is_exact(attempts: list[Attempt]) -> None:
    """Tokens and nano-dollars are added; what was certainly not billed adds nothing."""
    total = sum_attempts(attempts)
    counted = [attempt for attempt in attempts if attempt.price]
    unknown = any(attempt.usage is None for attempt in attempts)

    if counted:
        assert total.usage
        assert total.usage.total_tokens == sum(a.usage.total_tokens for a in counted if a.usage)
        assert total.cost_nano_usd == sum(a.cost_nano_usd or 0 for a in counted)
    else:
        assert total.usage_source == (UsageSource.UNKNOWN if unknown else UsageSource.NONE)
    assert (total.cost_nano_usd is None) == (total.usage is None)
    may_be_billed = build_failed_attempt(unbilled=False)
    assert sum_attempts([*attempts, may_be_billed]).usage_source is UsageSource.UNKNOWN
