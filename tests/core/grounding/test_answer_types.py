"""Types of answers."""

import pytest

from service.core.grounding.questions import read_question


@pytest.mark.parametrize(
    ("prompt", "answer", "other"),
    [
        ("How long does delivery take?", "within three days", "by airmail"),
        ("How often does it run?", "It runs every day", "It runs at once"),
        ("それは何日ごとに動きますか", "毎日実行されます", "翌日に実行されます"),
        ("What can't a column do?", "It may not be a key", "It has a type"),
        ("使えない文字は何ですか", "記号は使えません", "英数字を使えます"),
        ("The difference between A and B?", "A is fast, whereas B is safe", "A and B are names"),
        ("サポート期間は何年ですか", "約 5 年です", "約 5 回です"),
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
