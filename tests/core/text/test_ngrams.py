"""Words of Chinese and Korean."""

import pytest

from service.core.text.ngrams import (
    drop_boundary_pairs,
    split_chinese,
    split_korean,
    strip_particle,
)


@pytest.mark.parametrize(
    ("run", "pairs"),
    [
        ("用户密码", ["用户", "户密", "密码"]),
        ("如何锁定用户的密码", ["锁定", "定用", "用户", "密码"]),
        ("组", ["组"]),
        ("的", []),
    ],
)
def test_chinese(run: str, pairs: list[str]) -> None:
    """Chinese is read as pairs of characters between words of grammar."""
    assert split_chinese(run) == pairs


@pytest.mark.parametrize(
    ("run", "pairs", "others"),
    [
        ("프로세스를", ["프로", "로세", "세스"], []),
        ("xz로", [], ["xz"]),
        ("어떻게", [], []),
        ("셸", ["셸"], []),
    ],
)
def test_korean(run: str, pairs: list[str], others: list[str]) -> None:
    """A Korean word is read as pairs without its particle; other letters are kept apart."""
    assert split_korean(run) == (pairs, others)


def test_short_words_keep_their_ending() -> None:
    """A particle is removed only if two characters remain."""
    assert strip_particle("회의") == "회의"


def test_pairs_across_words_do_not_count() -> None:
    """An unknown pair between two known ones is dropped; other unknown pairs are words."""
    known = {"用户", "密码"}.__contains__
    assert drop_boundary_pairs(["用户", "户密", "密码", "码表"], known) == ["用户", "密码", "码表"]
