"""Versions: near duplicates among the hits, such as the policies of several years.

Hits are versions of each other if their titles are equal except for numbers, and their texts have
`SHARED_MIN` of their words in common, numbers not counted. The newest takes the place of the best,
and the others are marked as older, unless the query names the number that distinguishes an older
title. A version is dated by the years of its title, the date of its document, the other numbers of
its title, and the time of its upload, in this order. Versions have a `date` if it is known: that of
the document, or the year of the title.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import msgspec

from service.core.search.results import Hit
from service.core.text.tokenizer import fold_text

SHARED_MIN = 0.8
_YEARS = range(1900, 2200)
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+")
_PUNCTUATION = re.compile(r"[\W_]+")


ReadDates = Callable[[list[str]], Mapping[str, str]]
"""Returns the dates of those documents that have one, in ISO 8601, by id."""


def order_versions(
    hits: Sequence[Hit], query: str, read_dates: ReadDates | None = None
) -> list[Hit]:
    """Put the newest of each group of versions first in the places of that group.

    The others get the id of the document that replaces them as `newer`. `read_dates` is called only
    if there are versions; without it hits keep their dates.
    """
    groups = _group_versions(hits)
    ordered = list(hits)
    if groups and read_dates:
        dates = read_dates([hits[place].document_id for places in groups for place in places])
        for place in (place for places in groups for place in places):
            ordered[place] = _add_date(ordered[place], dates)
    named = set(_NUMBER.findall(fold_text(query)))
    for places in groups:
        versions = [ordered[place] for place in places]
        if any(named & (_list_numbers(hit) - _list_common_numbers(versions)) for hit in versions):
            continue
        versions.sort(key=_date_version, reverse=True)
        newest = versions[0]
        for place, hit in zip(places, versions, strict=True):
            is_newest = hit.document_id == newest.document_id
            ordered[place] = (
                hit if is_newest else msgspec.structs.replace(hit, newer=newest.document_id)
            )
    return ordered


def _add_date(hit: Hit, dates: Mapping[str, str]) -> Hit:
    """Return a hit with the date of its document, or the last year of its title, if any."""
    date = dates.get(hit.document_id)
    if date is None:
        years = _select_years(_NUMBER.findall(fold_text(hit.title)))
        date = years[-1] if years else None
    return hit if date is None else msgspec.structs.replace(hit, date=date)


def _group_versions(hits: Sequence[Hit]) -> list[list[int]]:
    """The places of the hits that are versions of each other, in ascending order."""
    by_title: dict[str, list[int]] = {}
    for place, hit in enumerate(hits):
        by_title.setdefault(_fold_title(hit.title), []).append(place)
    groups: list[list[int]] = []
    for places in by_title.values():
        remaining = places
        while len(remaining) > 1:
            words = _list_words(hits[remaining[0]])
            group = [place for place in remaining if _share_words(words, _list_words(hits[place]))]
            remaining = [place for place in remaining if place not in group]
            if len({hits[place].document_id for place in group}) > 1:
                groups.append(group)
    return groups


def _fold_title(title: str) -> str:
    return _PUNCTUATION.sub(" ", _NUMBER.sub(" ", fold_text(title))).strip()


def _list_words(hit: Hit) -> set[str]:
    """The words of a text; of Japanese and other text beyond ASCII, the pairs of letters."""
    words: set[str] = set()
    for word in _WORD.findall(fold_text(hit.text)):
        words.update([word] if word.isascii() else map("".join, pairwise(word)))
    return words


def _share_words(first: set[str], second: set[str]) -> bool:
    return len(first & second) >= SHARED_MIN * len(first | second)


def _list_numbers(hit: Hit) -> set[str]:
    return set(_NUMBER.findall(fold_text(hit.title)))


def _list_common_numbers(hits: Sequence[Hit]) -> set[str]:
    return set.intersection(*map(_list_numbers, hits))


def _date_version(hit: Hit) -> tuple[list[int], str, list[int], str]:
    """The years of the title, the date, all numbers, and the id, which begins with a time."""
    numbers = _NUMBER.findall(fold_text(hit.title))
    years = [int(number) for number in _select_years(numbers)]
    date = hit.date if isinstance(hit.date, str) else ""
    return years, date, [int(number) for number in numbers], hit.document_id


def _select_years(numbers: Sequence[str]) -> list[str]:
    return [number for number in numbers if int(number) in _YEARS]
