"""Words of Chinese and Korean: pairs of adjacent characters.

Neither language separates its words in a way that a search can use without a dictionary. Pairs of
characters are the usual substitute (J. Y. Nie et al., "On the use of words and n-grams for Chinese
information retrieval", 2000; J. H. Lee and J. S. Ahn, "Using n-grams for Korean text retrieval",
1996). Chinese is split at words of grammar first; Korean words lose their particle.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

_CHINESE_GRAMMAR = re.compile(
    "怎么样|怎么|怎样|如何|什么|哪些|哪个|哪里|为什么|是否|可以|能够|需要|应该|以及|或者|并且|但是|如果"
    "|这个|那个|这些|那些|我们|你们|他们|它们|请问|同时|之后|之前|多少|怎麼|什麼|為什麼|這個|那個"
    "|[的了吗呢吧啊么和与及或在是把被请您你我他她它们这那嗎麼與這們就都也很到里时从对为以会要让给有些]"
)
_KOREAN_PARTICLES = re.compile(
    "(?:에서는|에서|으로는|으로|에게|까지|부터|하려면|하는|하나요|합니까|입니까|됩니까|습니까|인가요|이란"
    "|은|는|이|가|을|를|에|로|의|와|과|도|만|란)$"
)
_KOREAN_GRAMMAR = frozenset(
    """어떻게 무엇 무엇인가요 무엇입니까 무슨 어떤 어디 언제 왜 누가 누구 어느 하나요 합니까
    입니까 됩니까 있나요 있습니까 있는 없는 하는 하려면 되는 위한 위해 대한 대해 그리고 그러나
    또는 및 수 것 등 때 이 그 저 할 될 있다 없다 한다 된다 합니다 됩니다 있습니다 없습니다
    입니다 방법""".split()  # noqa: SIM905 - readable as text
)
_HANGUL = re.compile("[\uac00-\ud7a3]+|[^\uac00-\ud7a3]+")


def split_chinese(run: str) -> list[str]:
    """Return the pairs of characters of a run of Chinese, without words of grammar."""
    return [pair for part in _CHINESE_GRAMMAR.split(run) if part for pair in _list_pairs(part)]


def split_korean(run: str) -> tuple[list[str], list[str]]:
    """Return the pairs of characters of a run with Hangul, and its parts in other letters."""
    pairs: list[str] = []
    others: list[str] = []
    for part in _HANGUL.findall(run):
        if not "\uac00" <= part[0] <= "\ud7a3":
            others.append(part)
        elif part not in _KOREAN_GRAMMAR:
            word = strip_particle(part, characters_min=1 if others else 2)
            if word and word not in _KOREAN_GRAMMAR:
                pairs += _list_pairs(word)
    return pairs, others


def drop_boundary_pairs(words: Sequence[str], is_known: Callable[[str], bool]) -> list[str]:
    """Return the words of a question without unknown pairs between two known ones.

    Such a pair consists of the end of one word and the beginning of the next.
    """
    return [
        word
        for n, word in enumerate(words)
        if is_known(word)
        or not 0 < n < len(words) - 1
        or not (words[n - 1][-1:] == word[:1] and words[n + 1][:1] == word[-1:])
        or not (is_known(words[n - 1]) and is_known(words[n + 1]))
    ]


def strip_particle(word: str, characters_min: int = 2) -> str:
    """Return a Korean word without its particle, if at least this much of it remains.

    After other letters ("xz로") the whole part may be a particle.
    """
    stem = _KOREAN_PARTICLES.sub("", word)
    return stem if len(stem) >= characters_min or (characters_min == 1 and not stem) else word


def _list_pairs(run: str) -> list[str]:
    return [a + b for a, b in pairwise(run)] if len(run) > 1 else [run]
