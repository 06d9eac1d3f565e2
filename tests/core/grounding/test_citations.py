"""Citation markers in answers, and the sentence of the source that each one supports."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.grounding.citations import read_citations
from tests.core.grounding.test_prompt import passages


def test_sources_have_the_supporting_sentence() -> None:
    """Sources have the span of the supporting sentence; invalid citations are counted."""
    text = "The tower is 90 metres high. It was built in 1712. Tickets cost 5 euros."
    context = passages("Unrelated words stand here.", text)
    citations = read_citations("It was built in 1712 [2]. See also [7], [1][9].", context, "")
    assert [(source.n, source.text[slice(*source.sentence or ())]) for source in citations.sources][
        1
    ] == (
        2,
        "It was built in 1712.",
    )
    assert (citations.real, citations.dropped) == (2, 2)
    (source,) = read_citations(
        "塔は1712年に建てられました。[1]",
        passages("塔の高さは90メートルです。塔は1712年に建てられた。"),
        "",
    ).sources
    assert source.text[slice(*source.sentence or ())] == "塔は1712年に建てられた。"


def test_the_header_of_a_table_supports_no_claim() -> None:
    """The sentence is the row with the value, though a claim also has the words of the header."""
    text = "| Kettle | Price |\n|---|:--|\n| Blue | 45 |\n| Red | 60 |"
    (source,) = read_citations("Kettle: Red; Price: 60 [1]", passages(text), "").sources
    assert source.text[slice(*source.sentence or ())].strip() == "| Red | 60 |"


def test_unsupported_citations_are_marked_and_counted() -> None:
    """A source is not supported if any claim that cites it has words from elsewhere."""
    context = passages(
        "The tower is 90 metres high.", "It was built in 1712.", "Tickets cost 5 euros."
    )
    text = "The tower is 90 metres high. [1] It was built in 1812. [2][9] Tickets cost 5 euros. [3]"
    citations = read_citations(text, context, "How high is the tower?")
    assert [(source.n, source.supported) for source in citations.sources] == [
        (1, msgspec.UNSET),
        (2, False),
        (3, msgspec.UNSET),
    ]
    assert (citations.real, citations.dropped, citations.unsupported) == (3, 1, 1)
    (source,) = read_citations(f"{text} It has 5 doors. [1]", context, "").sources[:1]
    assert source.supported is False


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Yes. [2] No. [1]", [1, 2]),
        ("はい。［１］いいえ。【3】", [1, 3]),
        ("Both. [1, 3] and [1][2]", [1, 2, 3]),
        ("Range. [1-3]", [1, 2, 3]),
        ("和文。[1、2]", [1, 2]),
        ("None [4] [0] [x] 1 (2) []", []),
        ("Huge [99999999999] [1-9999999]", []),
        ("", []),
    ],
)
def test_cited(text: str, numbers: list[int]) -> None:
    """The sources are the existing passages whose numbers are in brackets, by number."""
    assert [
        source.n for source in read_citations(text, passages("a", "b", "c"), "").sources
    ] == numbers


@given(st.text(st.sampled_from("[]［］【】0123456789,-、 "), max_size=500))
def test_cited_takes_any_text(text: str) -> None:
    """Any text can be parsed."""
    assert {source.n for source in read_citations(text, passages("a", "b"), "").sources} <= {1, 2}
