"""What questions ask for."""

import pytest

from service.core.grounding.questions import LONG_CHARACTERS, is_expanded, read_question


@pytest.mark.parametrize(
    ("prompt", "answer", "other"),
    [
        ("How long does delivery take?", "within three days", "by airmail"),
        ("配達は何日かかりますか", "二、三日です", "航空便です"),
        ("How much is a ticket?", "9 euros", "at the desk"),
        ("入館料はいくら？", "700円です", "受付で"),
        ("When does it open?", "on Monday at 10 a.m.", "with a key"),
        ("いつ届きますか", "午後に届く", "玄関に届く"),
        ("Who built it?", "Clara Winter built it", "they built it"),
        ("どこで買えますか", "受付の横", "すぐ買える"),
        ("How many rooms are there?", "twelve rooms", "many rooms"),
        ("Which e-mail address?", "write to a@b.example", "write to us"),
        ("電話番号を教えて", "054-555-0142", "受付まで"),
        ("バックアップの方法", "コマンドを実行", "昨日のこと"),
    ],
)
def test_types(prompt: str, answer: str, other: str) -> None:
    """The patterns of a question match its answer and not another sentence."""
    patterns = read_question(prompt).answers
    assert patterns
    assert all(pattern.search(answer) for pattern in patterns)
    assert not all(pattern.search(other) for pattern in patterns)


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
    ("acronym", "text", "expanded"),
    [
        ("WAL", "Write-Ahead Logging keeps the changes", True),
        ("CTE", "A common table expression (CTE) is a view", True),
        ("VPN", "仮想プライベートネットワーク (VPN) を使う", True),
        ("HTTP", "HTTP (Hypertext Transfer Protocol)", True),
        ("ESR", "ESR stands for a release", True),
        ("WAL", "we use WAL mode (see below)", False),
        ("WAL", "the WAL file is large", False),
    ],
)
def test_expansions(acronym: str, text: str, expanded: bool) -> None:
    """The expansion of an acronym is beside it, or has its initials."""
    assert is_expanded(acronym, text) == expanded


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
