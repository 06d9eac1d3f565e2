"""What questions ask for."""

import pytest

from service.core.grounding.questions import LONG_CHARACTERS, read_question


@pytest.mark.parametrize(
    ("prompt", "flags"),
    [
        ("Why is it slow?", {"asks_why", "is_specific"}),
        ("なぜ遅いのですか", {"asks_why", "is_specific"}),
        ("How do I install it?", {"asks_how"}),
        ("インストールの手順", {"asks_how"}),
        ("Is A or B faster?", {"asks_several", "compares", "is_polar"}),
        ("AとBの違いは？", {"asks_several", "compares"}),
        ("送料はいくらで、いつ届きますか", {"asks_several", "is_specific"}),
        ("返品は何日以内にできますか", {"is_specific"}),
        ("Where is the lift?", set()),
        ("Can I park here?", {"is_polar"}),
        ("駐車できますか", {"is_polar"}),
        ("どこに駐車できますか", set()),
    ],
)
def test_flags(prompt: str, flags: set[str]) -> None:
    """Reasons, instructions, comparisons and several facts are recognized."""
    question = read_question(prompt)
    names = ("asks_why", "asks_how", "asks_several", "compares", "is_specific", "is_polar")
    assert {name for name in names if getattr(question, name)} == flags


def test_a_long_prompt_is_read_by_its_questions() -> None:
    """The sentences around the questions of a mail are left out."""
    rest = "We have had much trouble. " * (LONG_CHARACTERS // 20)
    assert read_question(f"{rest}Where is the key? {rest}").text == "Where is the key?"
    assert read_question(rest).text == rest


@pytest.mark.parametrize(
    ("prompt", "defined"),
    [
        ("partial index", True),
        ("時刻同期", True),
        ("犬は歓迎されますか", False),
        ("Really?", False),
    ],
)
def test_a_few_words_ask_for_a_definition(prompt: str, defined: bool) -> None:
    """A query as in a search box has the type of a definition; a question does not."""
    definition = "A partial index is an index over some rows."
    assert any(pattern.search(definition) for pattern in read_question(prompt).answers) == defined
