"""Text → terms: what the index knows of a text. Pure.

*Words*, in order: NFKC, lower case, Latin accents stripped. Japanese is cut by SudachiPy with its small dictionary into
the shortest units (mode A) in their dictionary form; what only holds a sentence together (particles, auxiliaries,
pronouns, verbs like する) is dropped. Everything else is runs of letters and digits, English stop words left out and the
rest reduced by Porter's second algorithm (M. F. Porter, "The English (Porter2) stemming algorithm", 2002). *Grams*: pairs
of adjacent Japanese characters unless both are hiragana, and four letters of Latin words. Words find; grams find what the
words cut differently, and what the dictionary does not know.

Without the dictionary (`KOTAE_DICTIONARY=none`, or the package is not installed) Japanese words are the runs of one
script: katakana; kanji, long runs in pairs, as compounds are mostly built; hiragana, which is mostly grammar, is dropped.

Every term consists of letters, numbers and marks, all of which the index takes as parts of a term, so that joining
terms with spaces loses nothing. When the rules change, `RULES` changes, and what was indexed is made anew.
"""

import importlib.metadata
import re
import threading
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec
import Stemmer

try:
    from sudachipy import Dictionary, SplitMode
except ImportError:  # a lean installation: runs of one script do instead
    Dictionary = None

RULES = 4
WORD_CHARACTERS_MAX = 40  # of one word; what is longer is cut, not dropped
ENTRIES_KEPT = 50_000  # of the dictionary, some 5 MB: what most texts are made of
RUN_CHARACTERS_MAX = 4_000  # of Japanese given to the dictionary at once; it takes 49,149 bytes

_KANJI = (
    "\u3005-\u3007\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\ufa70-\ufad9\U00020000-\U0002a6df\U0002a700-\U0002b738"
    "\U0002b740-\U0002b81d\U0002b820-\U0002cea1\U0002ceb0-\U0002ebe0\U0002f800-\U0002fa1d\U00030000-\U0003134a"
)
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f"
_JAPANESE = re.compile(f"[{_HIRAGANA}{_KATAKANA}\uff66-\uff9f{_KANJI}]")
_RUN = re.compile(
    f"(?P<japanese>[{_KANJI}{_KATAKANA}{_HIRAGANA}]+)|(?:(?![{_KANJI}{_KATAKANA}{_HIRAGANA}_])\\w)+"
)
_SCRIPT = re.compile(f"[{_KANJI}]+|[{_KATAKANA}]+")
_IS_KANJI = re.compile(f"[{_KANJI}]")
_IS_KATAKANA = re.compile(f"[{_KATAKANA}]")
_CJK_RUN = re.compile(f"[{_KANJI}{_KATAKANA}{_HIRAGANA}\uac00-\ud7a3]{{2,}}")
_HIRAGANA_ONLY = frozenset(
    chr(code) for code in (*range(0x3041, 0x3097), *range(0x309D, 0x30A0), ord("ー"))
)
_ASKING = re.compile("[何誰幾]")  # 何年, 誰: what is asked for, not what is asked about
_ACCENTED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_MARKS = re.compile("[\u0300-\u036f]+")
_GROUPED = re.compile(
    r",(?<=\d,)(?=\d{3}(?!\d))"
)  # the comma first: the rest is looked at where there is one
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


class Tokenizer:
    """Makes terms. `name` says by which rules: what another name made must be made anew."""

    def __init__(self, *, dictionary: bool) -> None:
        self._lexicon = _Lexicon() if dictionary else None
        self.name = (
            f"runs-{RULES}" if self._lexicon is None else f"sudachi-{RULES}-{self._lexicon.version}"
        )

    def extract_terms(self, text: str) -> Terms:
        """The terms of a text. Any text; linear."""
        plain = fold_text(text)
        words: list[str] = []
        grams: list[str] = []
        for match in _RUN.finditer(plain):
            run = match.group()
            if match.lastgroup == "japanese":
                words += self._lexicon.words(run) if self._lexicon else _runs(run)
            elif run not in STOP_WORDS:
                word, fours = _latin(run)
                words.append(word)
                grams += fours
        for run in _CJK_RUN.findall(plain):
            grams += [
                a + b
                for a, b in pairwise(run)
                if a not in _HIRAGANA_ONLY or b not in _HIRAGANA_ONLY
            ]
        return Terms([word for word in words if word], grams)


@lru_cache
def get_tokenizer(dictionary: str) -> Tokenizer:
    """The tokenizer of a setting: `auto` takes the dictionary if it is installed, `none` never."""
    return Tokenizer(dictionary=dictionary == "auto" and Dictionary is not None)


def fold_text(text: str) -> str:
    """The text with what does not matter to a reader made the same: width, case, Latin accents, digit grouping."""
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()
    if not plain.isascii():
        plain = _MARKS.sub("", _ACCENTED.sub(_bare, plain)).replace("ς", "σ")
    if "," in plain:
        plain = _GROUPED.sub("", plain)
    return _POSSESSIVE.sub("", plain) if "'" in plain or not plain.isascii() else plain


def detect_language(text: str) -> str:
    """The language of a text: "ja" where a Japanese letter stands, else "en"."""
    return "ja" if _JAPANESE.search(text) else "en"


def compute_japanese_share(text: str) -> float:
    """The share of a text's characters that are Japanese letters."""
    return len(_JAPANESE.findall(text)) / len(text) if text else 0.0


def _bare(match: re.Match[str]) -> str:
    return _unaccented(match.group())


@lru_cache(maxsize=2048)
def _unaccented(character: str) -> str:
    return unicodedata.normalize("NFD", character)[0]


# What holds a sentence together; the second column of a part of speech tells する, ある, ない from what says something.
_GRAMMAR = frozenset(
    ["助詞", "助動詞", "補助記号", "記号", "空白", "代名詞", "連体詞", "接続詞", "感動詞"]
)
_ASKED = re.compile(
    "[何誰幾]|いつ|いく[らつ]$|なぜ$|どう$|いかが$|教える$"
)  # asking, not what is asked about
_DEPENDENT = frozenset(["非自立可能", "助動詞語幹"])


class _Lexicon:
    """SudachiPy and its small dictionary, loaded at first use. Its tokenizers are not made for threads: each has its own."""

    def __init__(self) -> None:
        self.version = "-".join(
            importlib.metadata.version(name) for name in ("sudachipy", "sudachidict-small")
        )
        self._lock = threading.Lock()
        self._dictionary: Any = None
        self._is_said: Any = None
        self._own = threading.local()
        self._known: dict[int, str] = {}

    def words(self, run: str) -> list[str]:
        """The words of a run of Japanese; "" for what is none."""
        return [
            known
            if (known := self._known.get(morpheme.word_id())) is not None
            else self._look_up(morpheme)
            for start in range(0, len(run), RUN_CHARACTERS_MAX)
            for morpheme in self._tokenizer().tokenize(run[start : start + RUN_CHARACTERS_MAX])
        ]

    def _look_up(self, morpheme: Any) -> str:
        """The word of a morpheme, remembered if the dictionary has it: asking about its parts takes as long as finding it."""
        form = morpheme.dictionary_form()
        if not self._is_said(morpheme) or _ASKED.match(form):
            word = ""
        elif form.isalnum():
            word = _word(form)
        else:
            return _word(morpheme.surface())
        if not morpheme.is_oov() and len(self._known) < ENTRIES_KEPT:
            self._known[morpheme.word_id()] = word
        return word

    def _tokenizer(self) -> Any:
        if not hasattr(self._own, "tokenizer"):
            with self._lock:
                if self._dictionary is None:
                    self._dictionary = Dictionary(dict="small")
                    self._is_said = self._dictionary.pos_matcher(
                        lambda pos: pos[0] not in _GRAMMAR and pos[1] not in _DEPENDENT
                    )
            self._own.tokenizer = self._dictionary.tokenizer(
                mode=SplitMode.A, fields={"pos", "dictionary_form"}
            )
        return self._own.tokenizer


def _runs(run: str) -> list[str]:
    """The words of a run of Japanese, without a dictionary."""
    words = []
    for part in _SCRIPT.findall(run):
        words += (
            [_word(part)]
            if _IS_KATAKANA.match(part)
            else [half for rest in _ASKING.split(part) for half in _halves(rest)]
        )
    return words


def _word(word: str) -> str:
    # サーバー and サーバ are one word; so short a word as キー keeps its mark.
    return (word.rstrip("ー") if len(word) >= 4 and _IS_KATAKANA.match(word) else word)[
        :WORD_CHARACTERS_MAX
    ]


def _halves(run: str) -> list[str]:
    """A run of kanji as the words it is likely made of: two characters each, the last three if their number is odd."""
    if len(run) < 4:
        return [run]
    last = len(run) - 3 if len(run) % 2 else len(run)
    return [run[i : i + 2] for i in range(0, last, 2)] + ([run[last:]] if last < len(run) else [])


@lru_cache(maxsize=65_536)
def _latin(run: str) -> tuple[str, tuple[str, ...]]:
    """The stem of a word, and its grams if it is written in plain letters."""
    word = (
        _stem(run)
        if run.isascii() and 2 < len(run) <= WORD_CHARACTERS_MAX
        else run[:WORD_CHARACTERS_MAX]
    )
    return word, tuple(_fours(run)) if run.isascii() else ()


def _fours(word: str) -> list[str]:
    return [word] if len(word) < 5 else [word[i : i + 4] for i in range(len(word) - 3)]


_stemmer = Stemmer.Stemmer("english", 0)  # without a cache of its own: `_latin` has one
_stemming = threading.Lock()  # the stemmer keeps the word it works on in itself


def _stem(word: str) -> str:
    with _stemming:
        return str(_stemmer.stemWord(word))
