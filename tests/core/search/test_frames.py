"""The form of a question."""

import pytest

from service.core.search.frames import asks_definition, remove_frame


@pytest.mark.parametrize(
    ("question", "rest"),
    [
        ("What does WAL stand for?", "What does WAL ?"),
        ("What does a full fsck mean?", "What does a full fsck ?"),
        ("the mean free path", "the mean free path"),
        ("What is the difference between a chain and a group?", "What is the a chain and a group?"),
        ("a difference of two sets", "a difference of two sets"),
        ("NMU とは何の略ですか", "NMU とは何 ですか"),
        ("VPN を作る方法", "VPN を作る"),
        ("方法論とは", "方法論とは"),
        ("間違いの直し方", "間違いの直し方"),
    ],
)
def test_words_of_the_form_are_removed(question: str, rest: str) -> None:
    """Only as parts of the form, not in compounds or with another meaning."""
    assert " ".join(remove_frame(question).split()) == rest


@pytest.mark.parametrize(
    ("question", "asks"),
    [
        ("What is a lens?", True),
        ("what does LVM mean", True),
        ("LVM とは", True),
        ("北史とは何か?", True),
        ("NMU は何の略ですか", True),
        ("横切ることは何?", False),
        ("Where is the lens?", False),
        ("Tell me what a lens costs", False),
    ],
)
def test_questions_for_definitions(question: str, asks: bool) -> None:
    """Those that ask what something is, does or means."""
    assert asks_definition(question) is asks
