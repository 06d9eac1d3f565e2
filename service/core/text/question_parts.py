"""Questions that are joined: "What is the fee, and which form do I need?"."""

import re

from service.core.text.tokenizer import detect_language

PART_WORDS, PART_JAPANESE_CHARACTERS = 4, 5  # of a part of a question
_NOUNS_ASKED = (
    "場所 名前 番号 理由 方法 料金 期限 期間 時間 値段 意味 種類 書式 役割 欄 値".split()  # noqa: SIM905
)
_NOUN_ASKED = "(?:" + "|".join(_NOUNS_ASKED) + ")"
_NOUN_LOOKBEHIND = "|".join(f"(?<={noun})" for noun in _NOUNS_ASKED)
# Between the parts of a question: before an interrogative, or between two nouns asked for.
_PARTS = re.compile(
    r"[,;]? and (?=(?:what|which|who|whose|when|where|why|how|in which|is|are|does|do|can)\b)"
    r"|(?<=[?？])\s*(?=[^\s」』”\"）)と])"
    rf"|(?:{_NOUN_LOOKBEHIND})と、?(?!な[るり])(?=.{{4,}}(?:{_NOUN_ASKED}|何|いつ|どこ|誰))"
    r"|(?<=[何誰つこ]で)、(?=.{4,}(?:何|いつ|どこ|誰|いくら))",
    re.IGNORECASE,
)


def split_parts(text: str) -> list[str]:
    """Return the questions that a question joins ("…, and which …?"), or [] if it is one."""
    parts = [part.strip() for part in _PARTS.split(text) if part.strip()]
    return parts if len(parts) > 1 and all(map(_is_complete, parts)) else []


def _is_complete(part: str) -> bool:
    """Return whether a part of a question has words enough to be one."""
    if detect_language(part) == "ja":
        return len(part) >= PART_JAPANESE_CHARACTERS
    return len(part.split()) >= PART_WORDS
