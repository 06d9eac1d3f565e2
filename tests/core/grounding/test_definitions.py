"""Definitions and expansions."""

import pytest

from service.core.grounding.definitions import defines_term, is_expanded
from service.core.text.tokenizer import get_tokenizer


@pytest.mark.parametrize(
    ("text", "words", "defines"),
    [
        ("A partial index is an index over some rows.", {"partial", "index"}, True),
        ("The use of partial indexes in old versions is slow.", {"partial", "index"}, False),
        ("Then the partial index helps.", {"partial", "index"}, False),
        ("逆引きとは、アドレスから名前を調べることです。", {"逆引き"}, True),
        ("設定では逆引きを使います。", {"逆引き"}, False),
    ],
)
def test_definitions(text: str, words: set[str], defines: bool) -> None:
    """A definition has the words as its subject."""
    assert defines_term(text, words, get_tokenizer("auto")) == defines


@pytest.mark.parametrize(
    ("acronym", "text", "expanded"),
    [
        ("WAL", "Write-Ahead Logging keeps the changes", True),
        ("CTE", "A common table expression (CTE) is a view", True),
        ("VPN", "仮想プライベートネットワーク (VPN) を使う", True),
        ("HTTP", "HTTP (Hypertext Transfer Protocol)", True),
        ("ESR", "ESR stands for a release", True),
        ("CTE", "a common table expression is a view", True),
        ("WAL", "we use WAL mode (see below)", False),
        ("WAL", "the WAL file is large", False),
    ],
)
def test_expansions(acronym: str, text: str, expanded: bool) -> None:
    """The expansion of an acronym is beside it, or has its initials."""
    assert is_expanded(acronym, text) == expanded
