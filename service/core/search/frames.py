"""The form of a question, whose words say nothing about its subject.

"What does WAL stand for?" is about WAL; pages with the word "stand" are not nearer to it. Such
words are removed before the search. A question that only asks what something is ("LVM とは") has
no other words than a search box would have.
"""

import re

_KANJI = "\u3400-\u9fff"
_FRAME = re.compile(
    r"\bstands? for\b|\b(?:is|are) short for\b|\babbreviation (?:of|for)\b|\bacronym\b"
    r"|\bmeaning of\b|\bmean(?=s?\b(?: (?:in|by|when|for)\b|\s*[?.]?\s*$))s?"
    r"|\bdifferences? between\b|\bdifferen(?:ce|t)(?=\s*[?.]?\s*$)"
    rf"|の(?:略|意味|違い|方法|理由|やり方)(?![{_KANJI}])"
    rf"|(?<![{_KANJI}])(?:方法|理由|やり方)(?![{_KANJI}])",
    re.IGNORECASE,
)
_DEFINITION = re.compile(
    r"^\W*what(?:'s|’s| is| are| does| do)\b|(?:(?<!こ)とは|って何|の略|の意味)"
    r"(?:何|です|でしょう|か|は|を|[?？。]|\s|$)",
    re.IGNORECASE,
)


def remove_frame(question: str) -> str:
    """Return a question with spaces for the words of its form."""
    return _FRAME.sub(" ", question)


def asks_definition(question: str) -> bool:
    """Return whether a question asks what something is, does or means."""
    return _DEFINITION.search(question) is not None
