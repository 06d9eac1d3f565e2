"""Sentence boundaries."""

import pytest

from service.core.text.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一つ。二つ！三つ？四つ", ["一つ。", "二つ！", "三つ？", "四つ"]),
        ("「はい。」と彼は言った。次。", ["「はい。」と彼は言った。", "次。"]),
        (
            "終わり（注：例外。）です。次です！？はい。",
            ["終わり（注：例外。）です。", "次です！？", "はい。"],
        ),
        (
            "Pi is 3.14 today. Mr. Smith and Dr. J. Doe agree, e.g. here. Yes!",
            ["Pi is 3.14 today.", "Mr. Smith and Dr. J. Doe agree, e.g. here.", "Yes!"],
        ),
        (
            "See https://a.example/b?c=1.2. Then stop.",
            ["See https://a.example/b?c=1.2.", "Then stop."],
        ),
        ('"Really?" she asked. (So it was.) End', ['"Really?" she asked.', "(So it was.)", "End"]),
        (
            "Open from 10 a.m. to 6 p.m. every day. Closed on Monday.",
            ["Open from 10 a.m. to 6 p.m. every day.", "Closed on Monday."],
        ),
        (
            "# Title\nText one. Text two.\n- item. One\n2. second",
            ["# Title", "Text one.", "Text two.", "item.", "One", "second"],
        ),
        ("short\nlines\n\nare apart", ["short", "lines", "are apart"]),
        (
            "This is a paragraph whose author wrapped every line by hand\nand it ends here. Next.",
            [
                "This is a paragraph whose author wrapped every line by hand\nand it ends here.",
                "Next.",
            ],
        ),
        ("Yahoo!ニュースを見る。", ["Yahoo!ニュースを見る。"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Sentence boundaries are found in both languages."""
    assert [text[start:end] for start, end in split_sentences(text)] == expected
