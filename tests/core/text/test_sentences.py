"""Sentence boundaries."""

import pytest

from service.core.text.sentences import split_sentences, split_units


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
        ("Short\nLines\n\nare apart", ["Short", "Lines", "are apart"]),
        (
            "This is a paragraph whose author wrapped every line by hand\nand it ends here. Next.",
            [
                "This is a paragraph whose author wrapped every line by hand\nand it ends here.",
                "Next.",
            ],
        ),
        ("Yahoo!ニュースを見る。", ["Yahoo!ニュースを見る。"]),
        ("Open until 6 p.m. Closed on Monday.", ["Open until 6 p.m.", "Closed on Monday."]),
        (
            "See No. 5 on p. 12. Is it so? No. Then go.",
            ["See No. 5 on p. 12.", "Is it so?", "No.", "Then go."],
        ),
        (
            "Am 3. Oktober war z. B. Dr. Weiß da. Das kostet ca. 2 Mio. Euro, d. h. viel.",
            ["Am 3. Oktober war z. B. Dr. Weiß da.", "Das kostet ca. 2 Mio. Euro, d. h. viel."],
        ),
        (
            "Mme Roux dit : « C'est prêt. » Puis elle part.",
            ["Mme Roux dit : « C'est prêt. »", "Puis elle part."],
        ),
        ("¿Qué es? El Sr. Ruiz lo sabe. ¡Sí!", ["¿Qué es?", "El Sr. Ruiz lo sabe.", "¡Sí!"]),
        (
            "彼は「行く。\nすぐに。」などと言い、「はい。」と答えた。次。",
            ["彼は「行く。\nすぐに。」などと言い、「はい。」と答えた。", "次。"],
        ),
        ("> Did it arrive?\n> We sent it.", ["Did it arrive?", "We sent it."]),
        ("怎么退货？请联系客服。", ["怎么退货？", "请联系客服。"]),
        ("यह एक है। वह दो है।", ["यह एक है।", "वह दो है।"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Sentence boundaries are found in both languages."""
    assert [text[start:end] for start, end in split_sentences(text)] == expected


def read_units(text: str) -> list[tuple[str, str, str]]:
    """Kind, text and introduction of each unit."""
    units = split_units(text)
    return [
        (
            unit.kind.value,
            text[unit.start : unit.end],
            text[slice(*units[unit.introduction][:2])] if unit.introduction >= 0 else "",
        )
        for unit in units
    ]


def test_introductions() -> None:
    """Items and code have the sentence before them, rows have the header."""
    text = (
        "Two. Run:\n\n```\na. B\n```\n\nThere are:\n- one\n\n  more\n- two\n\n| A |\n|---|\n| 1 |\n"
    )
    assert read_units(text) == [
        ("paragraph", "Two.", ""),
        ("paragraph", "Run:", ""),
        ("code", "```\na. B\n```", "Run:"),
        ("paragraph", "There are:", ""),
        ("item", "one", "There are:"),
        ("item", "more", "There are:"),
        ("item", "two", "There are:"),
        ("table", "| A |\n|---|", "There are:"),
        ("table", "| 1 |", "| A |\n|---|"),
    ]
