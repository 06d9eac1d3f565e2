"""Questions that are joined."""

import pytest

from service.core.text.question_parts import split_parts


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        (
            "What is the fee, and which form do I need for it?",
            ["What is the fee", "which form do I need for it?"],
        ),
        ("入口の場所と、受付の電話番号は?", ["入口の場所", "受付の電話番号は?"]),
        ("When and where is it?", []),
        ("Who wrote “Why?” and other books?", []),
        ("新聞によると、塔の場所はどこですか", []),
    ],
)
def test_parts(question: str, parts: list[str]) -> None:
    """Complete questions that are joined are split, others are not."""
    assert split_parts(question) == parts
