"""The blocks of Markdown and plain text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.text.blocks import split_blocks


def read_blocks(text: str) -> list[tuple[str, list[str]]]:
    """Kind and parts of each block."""
    return [
        (block.kind.value, [text[start:end] for start, end in block.spans])
        for block in split_blocks(text)
    ]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        pytest.param(
            "# One\n#two\n####### three\n",
            [("heading", ["# One"]), ("paragraph", ["#two", "####### three"])],
            id="headings have one to six marks and a space",
        ),
        pytest.param(
            "Title\n=====\n\nPart\n---\n\nAn end.\n---\n",
            [("heading", ["Title"]), ("heading", ["Part"]), ("paragraph", ["An end."])],
            id="headings are underlined",
        ),
        pytest.param(
            "Run\nthis:\n```sh\n# comment\n\n- x\n````\n# Out\n",
            [
                ("paragraph", ["Run\nthis:"]),
                ("code", ["```sh\n# comment\n\n- x\n````"]),
                ("heading", ["# Out"]),
            ],
            id="code in a fence has no structure",
        ),
        pytest.param(
            "~~~\n```\n", [("code", ["~~~\n```"])], id="a fence without an end is code to the end"
        ),
        pytest.param(
            "> ```\n> a > b\n> ```\n> Then\n> ~~~\n> c\nEnd",
            [
                ("code", ["```\n> a > b\n> ```"]),
                ("paragraph", ["Then"]),
                ("code", ["~~~\n> c"]),
                ("paragraph", ["End"]),
            ],
            id="code in a quotation ends with it",
        ),
        pytest.param(
            "Call it:\n\n    int a;  // x\n\n    # b\n\nDone.",
            [
                ("paragraph", ["Call it:"]),
                ("code", ["    int a;  // x\n\n    # b"]),
                ("paragraph", ["Done."]),
            ],
            id="indented code",
        ),
        pytest.param(
            "    It was a dark night, and the rain\nfell on the roof.\n",
            [("paragraph", ["It was a dark night, and the rain\nfell on the roof."])],
            id="an indented first line is not code",
        ),
        pytest.param(
            "NAME\n\n       The list program shows the names of files.\n",
            [
                ("paragraph", ["NAME"]),
                ("paragraph", ["The list program shows the names of files."]),
            ],
            id="indented prose is not code",
        ),
        pytest.param(
            "- one\ncontinued\n  * two\n\n    more\n\n3. three\n\nend",
            [
                ("item", ["one\ncontinued"]),
                ("item", ["two"]),
                ("item", ["more"]),
                ("item", ["three"]),
                ("paragraph", ["end"]),
            ],
            id="items with lazy lines and paragraphs",
        ),
        pytest.param(
            "The museum was founded in spring of the year\n19. Then it was closed.",
            [
                (
                    "paragraph",
                    ["The museum was founded in spring of the year\n19. Then it was closed."],
                )
            ],
            id="a number in a wrapped sentence is not an item",
        ),
        pytest.param(
            "| A | B |\n|---|:-:|\n| 1 | 2 |\nC | D\n\nA | B\n--|--\n1 | 2",
            [
                ("table", ["| A | B |\n|---|:-:|", "| 1 | 2 |", "C | D"]),
                ("table", ["A | B\n--|--", "1 | 2"]),
            ],
            id="tables",
        ),
        pytest.param(
            "---\ntitle: T\ndate: 2024-01-02\n---\n\nText.",
            [("metadata", ["title: T", "date: 2024-01-02"]), ("paragraph", ["Text."])],
            id="front matter",
        ),
        pytest.param(
            "From: ann@a.example\nSubject: Lamp\n\nThe lamp that you sent arrived on Monday,\n"
            "and it does not work at all.\n\n> Did it arrive?\n> We sent it.\nYes.\n",
            [
                ("paragraph", ["From: ann@a.example", "Subject: Lamp"]),
                (
                    "paragraph",
                    ["The lamp that you sent arrived on Monday,\nand it does not work at all."],
                ),
                ("paragraph", ["Did it arrive?", "We sent it."]),
                ("paragraph", ["Yes."]),
            ],
            id="an e-mail with header lines, wrapped lines and a quotation",
        ),
        pytest.param(
            "　これは折り返された日本語の文章で、行の途\n中で改行されています。\n　次の段落です。",
            [
                (
                    "paragraph",
                    ["これは折り返された日本語の文章で、行の途\n中で改行されています。"],
                ),
                ("paragraph", ["次の段落です。"]),
            ],
            id="Japanese paragraphs with an indented first line",
        ),
        pytest.param(
            "■営業時間\n平日10時から\n定休日 水曜\n電話：03-1\n",
            [("paragraph", ["■営業時間", "平日10時から", "定休日 水曜", "電話：03-1"])],
            id="short lines are separate",
        ),
        pytest.param(
            "one two three four\\\nfive six seven eight nine ten eleven twelve  \nthirteen",
            [
                (
                    "paragraph",
                    [
                        "one two three four\\",
                        "five six seven eight nine ten eleven twelve",
                        "thirteen",
                    ],
                )
            ],
            id="hard line breaks",
        ),
    ],
)
def test_blocks(text: str, blocks: list[tuple[str, list[str]]]) -> None:
    """Blocks have their kind and their parts."""
    assert read_blocks(text) == blocks


@given(st.text(st.sampled_from("ab 1\n\t#-=*>|`~:.あ。\u3000"), max_size=300))
def test_blocks_are_in_order(text: str) -> None:
    """The parts are in order, do not overlap, and contain something."""
    spans = [span for block in split_blocks(text) for span in block.spans]
    assert all(text[start:end].strip() for start, end in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
