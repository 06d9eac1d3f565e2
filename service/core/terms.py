"""Text → terms: what the index knows of a text. Pure.

*Words*, in order: NFKC, lower case, Latin accents stripped. Of Japanese the runs of one script: katakana; kanji, long
runs in pairs, as compounds are mostly built; hiragana, which is mostly grammar, is dropped. Of everything else runs of
letters and digits, English stop words left out and the rest reduced by Porter's algorithm (M. F. Porter, "An algorithm
for suffix stripping", 1980). *Grams*: pairs of adjacent Japanese characters unless both are hiragana, and four letters
of Latin words. Words find; grams find what the runs cut differently.

Every term consists of letters, numbers and marks, all of which the index takes as parts of a term, so that joining
terms with spaces loses nothing. When the rules change, `TOKENIZER` changes, and what was indexed must be made anew.
"""

import re
import threading
import unicodedata
from functools import lru_cache
from itertools import pairwise

import msgspec
import snowballstemmer

TOKENIZER = "runs-1"
WORD_CHARACTERS_MAX = 40  # of one word; what is longer is cut, not dropped

_KANJI = (
    "\u3005-\u3007\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\ufa70-\ufad9\U00020000-\U0002a6df\U0002a700-\U0002b738"
    "\U0002b740-\U0002b81d\U0002b820-\U0002cea1\U0002ceb0-\U0002ebe0\U0002f800-\U0002fa1d\U00030000-\U0003134a"
)
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f"
_JAPANESE = re.compile(f"[{_HIRAGANA}{_KATAKANA}\uff66-\uff9f{_KANJI}]")
_RUN = re.compile(f"[{_KANJI}]+|[{_KATAKANA}]+|(?:(?![{_KANJI}{_KATAKANA}{_HIRAGANA}_])\\w)+")
_IS_KANJI = re.compile(f"[{_KANJI}]")
_IS_KATAKANA = re.compile(f"[{_KATAKANA}]")
_CJK_RUN = re.compile(f"[{_KANJI}{_KATAKANA}{_HIRAGANA}\uac00-\ud7a3]{{2,}}")
_HIRAGANA_PAIR = re.compile(f"[{_HIRAGANA}ー]{{2}}")
_ASKING = re.compile("[何誰幾]")  # 何年, 誰: what is asked for, not what is asked about
_ACCENTED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_MARKS = re.compile("[\u0300-\u036f]+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"['’ʼ](?:s|d|m|t|ll|re|ve)\b")

STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing don done down during each few for from further get give had has have having he her here hers
    him his how i if in into is it its itself just know let me more most much many my need no nor not of off on once only
    or other our ours out over own please same shall she should so some such tell than that the their theirs them then
    there these they this those through to too under until up us very was we were what when where which while who whom
    whose why will with would you your yours""".split()  # noqa: SIM905 - words read best as words
)


class Terms(msgspec.Struct, frozen=True):
    """The terms of a text, in order, repeated as often as they stand there."""

    words: list[str]
    grams: list[str]


def terms(text: str) -> Terms:
    """The terms of a text. Any text; linear."""
    plain = fold(text)
    words: list[str] = []
    grams: list[str] = []
    for run in _RUN.findall(plain):
        if _IS_KANJI.match(run):
            words += [half for part in _ASKING.split(run) for half in _halves(part)]
        elif _IS_KATAKANA.match(run):
            # サーバー and サーバ are one word; so short a word as キー keeps its mark.
            words.append((run.rstrip("ー") if len(run) >= 4 else run)[:WORD_CHARACTERS_MAX])
        elif run not in STOP_WORDS:
            words.append(_stem(run) if run.isascii() and 2 < len(run) <= WORD_CHARACTERS_MAX else run[:WORD_CHARACTERS_MAX])
            grams += _fours(run) if run.isascii() else ()
    for run in _CJK_RUN.findall(plain):
        grams += [pair for pair in map("".join, pairwise(run)) if not _HIRAGANA_PAIR.fullmatch(pair)]
    return Terms([word for word in words if word], grams)


def fold(text: str) -> str:
    """The text with what does not matter to a reader made the same: width, case, Latin accents, digit grouping."""
    plain = unicodedata.normalize("NFKC", text).lower()
    if not plain.isascii():
        plain = _MARKS.sub("", _ACCENTED.sub(_bare, plain)).replace("ς", "σ")
    return _POSSESSIVE.sub("", _GROUPED.sub("", plain))


def language(text: str) -> str:
    """The language of a text: "ja" where a Japanese letter stands, else "en"."""
    return "ja" if _JAPANESE.search(text) else "en"


def japanese_share(text: str) -> float:
    """The share of a text's characters that are Japanese letters."""
    return len(_JAPANESE.findall(text)) / len(text) if text else 0.0


def _bare(match: re.Match[str]) -> str:
    return _unaccented(match.group())


@lru_cache(maxsize=2048)
def _unaccented(character: str) -> str:
    return unicodedata.normalize("NFD", character)[0]


def _halves(run: str) -> list[str]:
    """A run of kanji as the words it is likely made of: two characters each, the last three if their number is odd."""
    if len(run) < 4:
        return [run]
    last = len(run) - 3 if len(run) % 2 else len(run)
    return [run[i : i + 2] for i in range(0, last, 2)] + ([run[last:]] if last < len(run) else [])


def _fours(word: str) -> list[str]:
    return [word] if len(word) < 5 else [word[i : i + 4] for i in range(len(word) - 3)]


_stemmer = snowballstemmer.stemmer("porter")
_stemming = threading.Lock()  # the stemmer keeps the word it works on in itself


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    with _stemming:
        return str(_stemmer.stemWord(word))
