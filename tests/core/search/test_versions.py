"""Near duplicates among the hits."""

from collections.abc import Sequence
from itertools import permutations

import msgspec
import pytest

from service.core.search.results import Hit
from service.core.search.versions import order_versions

POLICY = (
    "Employees may claim up to {} USD per night for hotels on business trips. Receipts must be "
    "handed in within {} days. Claims without receipts are not paid."
)
REGULATION = "出張時の宿泊費は一泊{}円を上限とします。領収書は{}日以内に経理部へ提出してください。"


def make_hit(document_id: str, title: str, text: str) -> Hit:
    """A hit that consists of one chunk."""
    return Hit(
        document_id=document_id,
        chunk_id=f"{document_id}.0",
        start=0,
        end=len(text),
        title=title,
        text=text,
        score=1,
        coverage=1,
        matched=[],
        sentence=(0, 1),
    )


@pytest.mark.parametrize(
    ("titles", "text"),
    [
        (["Travel policy 2023", "Travel policy 2024", "Travel policy 2025"], POLICY),
        (["Travel policy v2.8", "Travel policy v2.9", "Travel policy v2.10"], POLICY),
        (["Policy (05/06/2023)", "Policy (04/01/2024)", "Policy (03/02/2025)"], POLICY),
        (["旅費規程（２０２３年度）", "旅費規程（2024年度）", "旅費規程（2025年度）"], REGULATION),
        (["Travel policy", "Travel policy", "Travel policy"], POLICY),
    ],
)
def test_the_newest_version_comes_first(titles: list[str], text: str) -> None:
    """The newest takes the first place in any order of the hits; the others name it."""
    oldest, middle, newest = (
        make_hit(f"d{n}", title, text.format(40 + 15 * n, 30 + n)) for n, title in enumerate(titles)
    )
    for hits in permutations([oldest, middle, newest]):
        first, second, third = order_versions(hits, "How much does a hotel cost?")
        assert (first, second.document_id, third.document_id) == (newest, "d1", "d0")
        assert (second.newer, third.newer) == ("d2", "d2")


def test_versions_are_dated_by_their_documents() -> None:
    """The date of a document decides between equal titles, and versions have it."""
    hits = [make_hit(f"d{n}", "Travel policy", POLICY.format(40 + n, 30)) for n in range(3)]
    other = make_hit("d9", "Menu", "Soup of the day.")
    dates = {"d0": "2025-03-01", "d1": "2024-03-01"}
    first, second, third, last = order_versions([*hits, other], "Hotel cost?", lambda _: dates)
    assert [hit.date for hit in (first, second)] == ["2025-03-01", "2024-03-01"]
    assert (first.document_id, second.newer, third.newer) == ("d0", "d0", "d0")
    assert (third.date, last) == (msgspec.UNSET, other)


def test_a_year_in_the_title_is_the_date() -> None:
    """Without a date of its document, a version has the year of its title."""
    hits = [make_hit(f"d{n}", f"Policy {n}", POLICY.format(n, 30)) for n in (2023, 2024)]
    ordered = order_versions(hits, "How much does a hotel cost?", lambda _: {})
    assert [hit.date for hit in ordered] == ["2024", "2023"]


def refuse_dates(ids: Sequence[str]) -> dict[str, str]:
    """Fail: no dates should be read."""
    raise AssertionError(ids)


def test_dates_are_read_of_versions_only() -> None:
    """A search without versions reads no dates."""
    order_versions([make_hit("d1", "Menu", "Soup.")], "Soup?", refuse_dates)


def test_a_named_version_is_not_replaced() -> None:
    """A question that names the number of an older version is answered from it."""
    hits = [
        make_hit("d1", "Travel policy 2023", POLICY.format(40, 30)),
        make_hit("d2", "Travel policy 2024", POLICY.format(55, 30)),
    ]

    assert order_versions(hits, "What was the limit in ２０２３?") == hits


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("Expense policy 2024", POLICY.format(55, 30)),
        ("Travel policy 2024", "Flights are booked by the office, at the lowest available price."),
    ],
    ids=["another title", "another text"],
)
def test_other_documents_are_no_versions(title: str, text: str) -> None:
    """Both the title and the text must be nearly equal."""
    hits = [
        make_hit("d1", "Travel policy 2023", POLICY.format(40, 30)),
        make_hit("d2", title, text),
    ]

    assert order_versions(hits, "hotel") == hits


def test_other_hits_keep_their_places() -> None:
    """Only the hits of a group change places with each other."""
    older = make_hit("d1", "Travel policy 2023", POLICY.format(40, 30))
    other = make_hit("d3", "Canteen", "The canteen opens at noon.")
    newer = make_hit("d2", "Travel policy 2024", POLICY.format(55, 30))

    assert order_versions([older, other, newer], "hotel") == [
        newer,
        other,
        msgspec.structs.replace(older, newer="d2"),
    ]
