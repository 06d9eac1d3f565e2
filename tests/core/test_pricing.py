"""Pricing: exact money in integers."""

import random
from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from service.core import pricing
from service.core.pricing import (
    NANO,
    ChargeTerms,
    CustomerPrice,
    PriceBook,
    Usage,
    combine_usage,
    format_markup,
    format_usd,
    to_nano_usd,
)
from service.core.provider_file import ModelPrice

AT = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
tokens = st.integers(0, 10_000_000)


@given(st.integers(-(10**15), 10**15))
def test_a_formatted_amount_is_exact(nano: int) -> None:
    """The wire's decimal string is the integer, without exponent or trailing zeros."""
    text = format_usd(nano)

    assert Decimal(text) * NANO == nano
    assert "e" not in text.lower()
    assert not ("." in text and text.endswith("0"))


@given(tokens, tokens, tokens)
def test_cached_tokens_are_part_of_the_prompt(prompt: int, completion: int, cached: int) -> None:
    """A cached token costs its own price instead of the full one, never both."""
    book = PriceBook(
        {"m": ModelPrice(input=Decimal(3), output=Decimal(15), cached_input=Decimal("0.3"))}
    )
    cached = min(cached, prompt)

    cost = book.compute_cost(
        "m", Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached), AT
    )

    assert cost is not None
    assert cost.nano_usd == (prompt - cached) * 3000 + cached * 300 + completion * 15_000


@given(tokens, tokens, tokens, tokens)
def test_cost_never_falls_when_usage_grows(
    prompt: int, completion: int, more_prompt: int, more_completion: int
) -> None:
    """More tokens never cost less."""
    book = PriceBook({})
    less = book.compute_cost(
        "gpt-4o-mini", Usage(prompt_tokens=prompt, completion_tokens=completion), AT
    )
    larger = book.compute_cost(
        "gpt-4o-mini",
        Usage(prompt_tokens=prompt + more_prompt, completion_tokens=completion + more_completion),
        AT,
    )

    assert less is not None
    assert larger is not None
    assert less.nano_usd <= larger.nano_usd


def test_the_listed_price_is_applied() -> None:
    """10,000 prompt tokens of gpt-4o-mini, 8,000 of them cached, cost $0.0009."""
    cost = PriceBook({}).compute_cost(
        "gpt-4o-mini", Usage(prompt_tokens=10_000, completion_tokens=0, cached_tokens=8000), AT
    )

    assert cost is not None
    assert format_usd(cost.nano_usd) == "0.0009"
    assert "gpt-4o-mini" in cost.price


def test_derived_rates_match_the_library() -> None:
    """For every listed model, the derived rates give the cost that the library computes."""
    choose, linear = random.Random(1), 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            calculation = model.calc_price(
                genai_prices.Usage(input_tokens=1, output_tokens=1),
                provider,
                genai_request_timestamp=AT,
            )
            rates = pricing._derive_rates(calculation.model_price)
            linear += rates is not None
            for share in (0, 0.5, 1):
                prompt, completion = choose.randrange(500_000), choose.randrange(100_000)
                usage = Usage(
                    prompt_tokens=prompt,
                    completion_tokens=completion,
                    cached_tokens=int(prompt * share),
                )
                listed = pricing._compute_listed_usd(
                    calculation.model_price, prompt, usage.cached_tokens, completion
                )
                cost = pricing._compute_listed_cost(
                    pricing._ListedPrice(calculation, "", rates), usage
                )
                assert (cost and cost.nano_usd) == (
                    None if listed is None else to_nano_usd(listed)
                ), (provider.id, model.id)
    assert linear > 1000


def test_an_unknown_provider_url_falls_back_to_the_name() -> None:
    """An unknown provider URL falls back to the price by the model's name."""
    book = PriceBook({}, {"default": "http://127.0.0.1:9/v1"})

    assert (
        book.compute_cost("gpt-4o-mini", Usage(prompt_tokens=1_000_000, completion_tokens=0), AT)
        is not None
    )


def test_an_unknown_model_has_no_cost() -> None:
    """Unknown is None, never 0."""
    assert (
        PriceBook({}).compute_cost("my-own-model", Usage(prompt_tokens=1, completion_tokens=1), AT)
        is None
    )


def build_usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Usage:
    """Build a usage."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([build_usage(10, 1), build_usage(10, 5)], build_usage(10, 5)),
        ([build_usage(10, 5), build_usage(12, 4)], build_usage(12, 4)),
        ([build_usage(10, 5, 3, 2), build_usage(0, 5)], build_usage(10, 5, 3, 2)),
        ([build_usage(10, 0, 8), build_usage(0, 7, 0, 4)], build_usage(10, 7, 8, 4)),
        ([build_usage(10, 5, 9, 5), build_usage(6, 3)], build_usage(6, 3, 6, 3)),
    ],
    ids=["growing", "corrected", "zero later", "in two parts", "details are limited"],
)
def test_later_reports_replace_counts(reports: list[Usage], expected: Usage) -> None:
    """The last count of each kind that is not zero is the usage of the answer."""
    first, second = reports

    assert combine_usage(None, first) == first
    assert combine_usage(first, second) == expected


def test_rounding_is_half_to_even() -> None:
    """Half a nano-dollar is rounded to the even neighbour."""
    assert [to_nano_usd(Decimal(half) / NANO / 2) for half in (1, 3, 5)] == [0, 2, 2]


def test_a_price_book_without_the_model_has_no_cost() -> None:
    """Without a price the cost is None."""
    from_nowhere = PriceBook({}).compute_cost(
        "no-such-model", Usage(prompt_tokens=1, completion_tokens=1), datetime.now(UTC)
    )

    assert from_nowhere is None


@given(
    st.decimals("0.000001", 1000, places=6),
    st.lists(st.integers(0, 10**12), min_size=2, max_size=2).map(sorted),
)
def test_a_charge_is_the_rounded_product_and_grows_with_the_cost(
    markup: Decimal, costs: list[int]
) -> None:
    """It is at most half a nano-dollar from cost times markup; that of a bound is a bound."""
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    low, high = (ChargeTerms(markup=markup).compute_charge("m", usage, cost) for cost in costs)
    assert low is not None
    assert high is not None
    assert low <= high
    assert abs(high - costs[1] * markup) <= Decimal("0.5")
    assert Decimal(format_markup(markup)) == markup


def test_customer_prices_precede_the_markup() -> None:
    """A model with a price needs no cost; without price and markup there is no charge."""
    usage = Usage(prompt_tokens=1_000, completion_tokens=100, cached_tokens=400)
    price = ModelPrice(input=Decimal(2), output=Decimal(10), cached_input=Decimal(1))
    book = PriceBook({}, customer_prices={"m": price})
    terms = book.build_terms(ChargeTerms(prepaid=True, markup=Decimal(3)), ["m", "n"])
    assert terms is not None
    assert terms.prices == {"m": CustomerPrice(**dict(price))}
    assert terms.compute_charge("m", usage, None) == 600 * 2000 + 400 * 1000 + 100 * 10_000
    assert terms.compute_charge("n", usage, 5) == 15
    assert terms.compute_charge("n", usage, None) is None
    assert book.build_terms(None, ["n"]) is None
    others = book.build_terms(None, ["m", "n"])
    assert others is not None
    assert (others.prepaid, others.compute_charge("n", usage, 5)) == (False, None)
