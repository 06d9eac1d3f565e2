"""The sentences of a context that can be quoted."""

import pytest

from service.core.grounding.candidates import clean_text, read_passages
from service.core.records import Passage
from service.core.text.tokenizer import get_tokenizer


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A: **Yes**, `rm -r` and *this* one [2].", "Yes, rm -r and this one."),
        ("see [the *guide*](https://a.example/x_(y)) for __init__", "see the guide for __init__"),
        ("wrapped\n> lines of\n  a quotation", "wrapped lines of a quotation"),
        ("折り返\nされた日本語", "折り返された日本語"),
        ("行末は English\nの単語", "行末は English の単語"),
    ],
)
def test_clean_text(text: str, clean: str) -> None:
    """A sentence is on one line, without markup, labels and citations."""
    assert clean_text(text) == clean


def test_candidates_have_their_surroundings() -> None:
    """Terms of title, heading and introduction are above, those of the sentence before before."""
    text = "# Refunds\n\nWe pay back. It takes days.\n\nBring:\n\n- a receipt\n\n|C|\n|-|\n|d|"
    (units,) = read_passages([Passage(1, "d", "d.1", "Shop", text)], get_tokenizer("none"))
    assert [candidate.text for candidate in units.candidates] == [
        "We pay back.",
        "It takes days.",
        "Bring:",
        "a receipt",
        "d",
    ]
    second, receipt = units.candidates[1], units.candidates[3]
    assert {"shop", "refund"} <= second.above
    assert "pay" in second.before
    assert second.around == "We pay back."
    assert "bring" in receipt.above
    assert units.headings[-1] == "Refunds"


def test_a_repeated_sentence_is_one_candidate() -> None:
    """The same sentence in two passages can be quoted from the first."""
    passages = [Passage(n, "d", f"d.{n}", "", "The same text.") for n in (1, 2)]
    first, second = read_passages(passages, get_tokenizer("none"))
    assert (len(first.candidates), len(second.candidates)) == (1, 0)
