"""Comparison of a provider's account with the log, by day and model. Pure.

A difference is a line with its most likely cause. Only what the numbers show is named: a day
boundary if the next day has the opposite difference, another name if a model has the same tokens,
usage that is estimated or unknown here, and calls from elsewhere if nothing here is in doubt.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import msgspec

from service.core.accounting.provider_export import ProviderUsage
from service.core.pricing import format_usd

COST_TOLERANCE_NANO_USD = 1000  # providers add up costs as floating-point numbers
Key = tuple[str, str]
"""The UTC day, and the model without the date of its snapshot."""


class LoggedUsage(msgspec.Struct):
    """The calls of a day and model in the log. `unpriced`: calls of unknown cost."""

    prompt: int = 0
    completion: int = 0
    nano_usd: int = 0
    estimated: int = 0
    unknown: int = 0
    unpriced: int = 0

    def add(self, counts: Sequence[int]) -> None:
        """Add counts in the order of the fields."""
        for name, count in zip(self.__struct_fields__, counts, strict=True):
            setattr(self, name, getattr(self, name) + count)


class UsagePair(msgspec.Struct, frozen=True):
    """What is compared."""

    logged: LoggedUsage
    reported: ProviderUsage

    @property
    def excess(self) -> tuple[int, int]:
        """Prompt and completion tokens that only the provider has; negative: only the log."""
        logged, reported = self.logged, self.reported
        return reported.prompt - logged.prompt, reported.completion - logged.completion

    @property
    def differs(self) -> bool:
        """Whether tokens or costs are different."""
        return any(self.excess) or _describe_cost(self) is not None


def describe_differences(pairs: Mapping[Key, UsagePair]) -> Iterator[str]:
    """A line for each key whose tokens or cost differ."""
    days = {(day, pair.excess): model for (day, model), pair in pairs.items() if any(pair.excess)}
    for (day, model), pair in sorted(pairs.items()):
        parts = []
        if any(pair.excess):
            parts = [_describe_tokens(pair), _find_cause(day, model, pair, days)]
        if cost := _describe_cost(pair):
            parts.append(cost)
        if parts:
            yield f"{day} {model}: {'; '.join(parts)}"


def _describe_tokens(pair: UsagePair) -> str:
    logged, reported = pair.logged, pair.reported
    doubts = (
        f" ({logged.estimated} answers estimated, {logged.unknown} unknown)"
        if logged.estimated or logged.unknown
        else ""
    )
    theirs = (
        f"{reported.prompt} prompt and {reported.completion} completion tokens"
        if reported.prompt or reported.completion
        else "nothing"
    )
    return (
        f"{logged.prompt} prompt and {logged.completion} completion tokens here{doubts},"
        f" {theirs} in the export"
    )


def _find_cause(day: str, model: str, pair: UsagePair, days: Mapping[Any, str]) -> str:
    opposite = (-pair.excess[0], -pair.excess[1])
    for step in (-1, 1):
        neighbour = str(date.fromisoformat(day) + timedelta(days=step))
        if days.get((neighbour, opposite)) == model:
            return f"{neighbour} has the opposite difference: calls at midnight, or a time zone"
    other = days.get((day, opposite))
    if other is not None:
        return f"{other} has the opposite difference: another name of the model"
    logged, is_more = pair.logged, min(pair.excess) >= 0
    if logged.unknown and is_more:
        return "usage that is unknown here"
    if logged.estimated:
        return "usage that is estimated here"
    if is_more:
        return "calls from elsewhere with this account"
    return "calls with another account, or not reported yet"


def _describe_cost(pair: UsagePair) -> str | None:
    """The difference of the costs; None: there is none, or it is not reported."""
    logged, reported = pair.logged, pair.reported
    if reported.nano_usd is None:
        return None
    if abs(reported.nano_usd - logged.nano_usd) <= COST_TOLERANCE_NANO_USD:
        return None
    text = f"${format_usd(logged.nano_usd)} here, ${format_usd(reported.nano_usd)} reported"
    if any(pair.excess):
        return text
    if logged.unpriced:
        return f"{text}; {logged.unpriced} answers of unknown cost"
    if not (logged.prompt or logged.completion):
        return f"{text}; no answers are charged under this name here"
    return f"{text}; the prices differ"
