"""Usage × price → nano-dollars, in integers and decimals only; never a float.

A price is looked up once per answer and its snapshot goes onto the log row, so that a later price list changes no
account. Prices come from the settings first, then from the data inside `genai-prices` (offline). A model without a
price costs `None`, which the account shows as null: unknown is never written as zero.
"""

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any

import genai_prices
import msgspec

from service.core.settings import EXTRACTIVE, ModelPrice

NANO = 1_000_000_000
_MILLION = Decimal(1_000_000)
_RATED = 1_000_000  # tokens of a question to the list, which has its prices per million


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer. Cached tokens are part of the prompt's, reasoning tokens part of the completion's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion; the parts are inside them already."""
        return self.prompt_tokens + self.completion_tokens


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer cost, and the price it was computed from, as written on the row."""

    nano_usd: int
    price: str


class PriceBook:
    """The prices in force. `own` are those of the settings, by model name."""

    def __init__(self, own: dict[str, ModelPrice], provider_url: str | None = None) -> None:
        self._own = own
        self._provider_url = provider_url

    def preload(self, model: str) -> None:
        """Load the list, which takes half a second, and look a model up. For a thread, before the first answer."""
        _listed(
            model, self._provider_url, datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        )

    def compute_cost(self, model: str, usage: Usage, at: datetime) -> Cost | None:
        """The cost of `usage` in integer nano-dollars, rounded half to even once; None if the model has no price."""
        if own := self._own.get(model):
            return _own_cost(model, own, usage)
        if model == EXTRACTIVE:
            return Cost(nano_usd=0, price="own: computed here, free")
        # The hour is precise enough for prices that change by date or by time of day, and lets the lookup be cached.
        found = _listed(model, self._provider_url, at.replace(minute=0, second=0, microsecond=0))
        return None if found is None else _listed_cost(found, usage)


def _own_cost(model: str, price: ModelPrice, usage: Usage) -> Cost:
    cached_price = price.input if price.cached_input is None else price.cached_input
    usd = (
        (usage.prompt_tokens - usage.cached_tokens) * price.input
        + usage.cached_tokens * cached_price
        + usage.completion_tokens * price.output
    ) / _MILLION
    return Cost(
        nano_usd=to_nano_usd(usd),
        price=f"settings: {model} input {price.input} cached {cached_price} output {price.output} USD/Mtok",
    )


class _Rates(msgspec.Struct, frozen=True):
    """USD of one answer and of one token of each kind. `cached` None: the list has no price for these."""

    answer: Decimal
    prompt: Decimal
    cached: Decimal | None
    completion: Decimal


class _Listed(msgspec.Struct, frozen=True):
    """A listed price. `rates` None: it goes by tiers, and each usage has to be asked for."""

    found: Any
    label: str
    rates: _Rates | None


@lru_cache(maxsize=1024)
def _listed(model: str, provider_url: str | None, at: datetime) -> _Listed | None:
    """The listed price of a model, by the provider's address where it is a known one, else by the model's name alone."""
    probe = genai_prices.Usage(input_tokens=1, output_tokens=1)
    for url in (provider_url, None) if provider_url else (None,):
        try:
            found = genai_prices.calc_price(
                probe, model_ref=model, provider_api_url=url, genai_request_timestamp=at
            )
        except LookupError:
            continue
        label = f"genai-prices {genai_prices.__version__}: {found.provider.id} {found.model.id} {found.model_price}"
        return _Listed(found, label, _rates(found.model_price))
    return None


def _rates(price: genai_prices.types.ModelPrice) -> _Rates | None:
    """The list's arithmetic takes 150 µs a call; where it is linear, which a test shows of every model, it is taken down once."""
    if any(isinstance(value, genai_prices.types.TieredPrices) for value in vars(price).values()):
        return None
    answer, prompt = _asked(price, 0, 0, 0), _asked(price, _RATED, 0, 0)
    cached, completion = _asked(price, _RATED, _RATED, 0), _asked(price, 0, 0, _RATED)
    if answer is None or prompt is None or completion is None:
        return None
    per_cached = None if cached is None else (cached - answer) / _RATED
    return _Rates(answer, (prompt - answer) / _RATED, per_cached, (completion - answer) / _RATED)


def _asked(
    price: genai_prices.types.ModelPrice, prompt: int, cached: int, completion: int
) -> Decimal | None:
    """USD as the list computes them; None if it has no price for a kind of token that was used."""
    try:
        usage = genai_prices.Usage(
            input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached or None
        )
        return price.calc_price(usage)["total_price"]
    except (LookupError, ValueError):
        return None


def _listed_cost(listed: _Listed, usage: Usage) -> Cost | None:
    prompt, cached, completion = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
    rates = listed.rates
    if rates is None:
        usd = _asked(listed.found.model_price, prompt, cached, completion)
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
    """Dollars to integer nano-dollars, half to even."""
    return int((usd * NANO).to_integral_value(ROUND_HALF_EVEN))


def format_usd(nano_usd: int) -> str:
    """Nano-dollars as the wire's decimal string: exact, no exponent, no trailing zeros ("0.000123", "0")."""
    sign = "-" if nano_usd < 0 else ""
    whole, part = divmod(abs(nano_usd), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")
