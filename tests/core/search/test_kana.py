"""Words in another script that sound alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.search.kana import compute_key, list_hiragana_parts, read_romaji, to_katakana


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("pasuwado", "パスワード"),
        ("debian", "デビアン"),
        ("gurupu", "グループ"),
        ("シャドー", "シャドウ"),
        ("kakko", "カッコ"),
        ("shisutemu", "システム"),
        ("kyatto", "キャット"),
    ],
)
def test_words_that_sound_alike_have_one_key(word: str, other: str) -> None:
    """Romaji, long vowels and small letters do not matter."""
    assert compute_key(word) == compute_key(other) is not None


@pytest.mark.parametrize("word", ["git", "strength", "table", "漢字", "ひらがな"])
def test_other_words_have_none(word: str) -> None:
    """A word that is neither katakana nor romaji has no key."""
    assert compute_key(word) is None


def test_parts_of_hiragana_begin_and_end_beside_particles() -> None:
    """Parts are at least three letters long, with the longest first."""
    parts = list(list_hiragana_parts("ログインしぇるを変える"))
    assert parts == [(4, "しぇるを"), (4, "しぇる")]


@given(st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x3096)))
def test_hiragana_has_the_same_length_as_katakana(text: str) -> None:
    """Positions are preserved."""
    assert len(to_katakana(text)) == len(text)


@given(st.text("aiueokstnhmyrwgzdbpj"))
def test_reading_romaji_ends(word: str) -> None:
    """Any letters are read, or are not romaji."""
    assert read_romaji(word) is None or read_romaji(word) == "" or compute_key(word)
