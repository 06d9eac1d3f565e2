"""Tokenization: the terms by which a text is indexed.

*Words*, in order: NFKC, lower case, without Latin accents. Japanese is segmented by SudachiPy with
its small dictionary into the shortest units (mode A) in their dictionary form; particles,
auxiliaries, pronouns and verbs like する are dropped. Everything else is split into runs of
letters and digits; English stop words are dropped and the rest is stemmed (M. F. Porter, "The
English (Porter2) stemming algorithm", 2002). *Grams*: pairs of adjacent Japanese characters unless
both are hiragana, and four letters of Latin words. Grams match words that are segmented
differently or missing from the dictionary.

Without the dictionary (`KOTAE_DICTIONARY=none`, or the package is not installed), Japanese words
are runs of one script: katakana; kanji, with long runs split into pairs, the usual length of the
parts of a compound; hiragana, which is mostly grammatical, is dropped.

Texts in other languages (`languages.py`) are stemmed by their own algorithms, with accents, which
are removed afterwards; their stop words are dropped, too. The words of Chinese and Korean are pairs
of characters (`ngrams.py`).

Terms consist of letters, numbers and marks, all of which are token characters of the index, so
they can be joined with spaces. A change of the rules changes `RULES`, and documents are
re-indexed.
"""

import importlib.metadata
import re
import threading
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from service.core.text.languages import STOP_WORDS as FOREIGN_STOP_WORDS
from service.core.text.ngrams import split_chinese, split_korean
from service.core.text.stemming import stem_word

try:
    from sudachipy import Dictionary, SplitMode
except ImportError:  # optional: runs of one script are used instead
    Dictionary = None

RULES = 5
WORD_CHARACTERS_MAX = 40  # longer words are truncated
WORDS_CACHED = 8_192  # Latin words with their grams: about 5 MB, at most 22 MB; no longer ones
ENTRIES_CACHED = 50_000  # of the dictionary, about 5 MB; covers most texts
RUN_CHARACTERS_MAX = 4_000  # of Japanese per call; SudachiPy accepts 49,149 bytes

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
_HAS_HANGUL = re.compile("[\uac00-\ud7a3]")
_IS_KATAKANA = re.compile(f"[{_KATAKANA}]")
_CJK_RUN = re.compile(f"[{_KANJI}{_KATAKANA}{_HIRAGANA}\uac00-\ud7a3]{{2,}}")
_HIRAGANA_ONLY = frozenset(
    chr(code) for code in (*range(0x3041, 0x3097), *range(0x309D, 0x30A0), ord("ー"))
)
_INTERROGATIVE_KANJI = re.compile("[何誰幾]")  # 何年, 誰: the kind of answer, not the subject
# Names with operators, such as HEAD~3, HEAD^3, C++: one more term each, in which private-use
# letters stand for the signs.
_OPERATOR_SIGN = re.compile(r"[a-z0-9@_.-][~^]|\b[a-z](?:\+\+|#)")
_REVISION = re.compile(r"(?<![\w@])(?:[a-z@][\w/.-]{0,30}(?:[~^]\d{0,3}){1,4}|[a-z](?:\+\+|#))")
_OPERATORS = str.maketrans("~^+#@/.-_", "\ue010\ue011\ue012\ue013\ue014\ue015\ue016\ue017\ue018")
_ACCENTED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_MARKS = re.compile("[\u0300-\u036f]+")
# The comma comes first so that the assertions are tested at commas only.
_GROUPED = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"['’ʼ](?:s|d|m|t|ll|re|ve)\b")

STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being
    below between both but by can could did do does doing don done down during each few for from
    further get give had has have having he her here hers him his how i if in into is it its
    itself just know let me more most much many my need no nor not of off on once only or other
    our ours out over own please same shall she should so some such tell than that the their
    theirs them then there these they this those through to too under until up us very was we were
    what when where which while who whom whose why will with would you your yours""".split()  # noqa: SIM905 - readable as text
)


class Terms(msgspec.Struct, frozen=True):
    """The terms of a text, in order, with repetitions."""

    words: list[str]
    grams: list[str]


class Spelling(msgspec.Struct, frozen=True):
    """A morpheme of a text, its term, which may be empty, and the usual spelling of its word."""

    start: int
    end: int
    word: str
    usual: str


class TermExtractor(Protocol):
    """Extracts the terms of a text."""

    def extract_terms(self, text: str) -> Terms: ...  # noqa: D102 - see `Tokenizer`, both
    def list_spellings(self, text: str) -> list["Spelling"]: ...  # noqa: D102


class Tokenizer:
    """Extracts terms. `name` identifies the rules, so a different name marks outdated terms."""

    def __init__(self, *, dictionary: bool) -> None:
        self._lexicon = _Lexicon() if dictionary else None
        self.name = (
            f"runs-{RULES}" if self._lexicon is None else f"sudachi-{RULES}-{self._lexicon.version}"
        )

    def extract_terms(
        self, text: str, language: str | None = None, stems: str | None = None
    ) -> Terms:
        """Return the terms of a text, in linear time.

        `language`: of the text, if it is neither English nor Japanese. `stems`: the language whose
        stems the Latin words get, if it is another.
        """
        stems = stems or language
        stems = stems if stems in FOREIGN_STOP_WORDS else None
        stop_words = _FOLDED_STOP_WORDS.get(language or "", STOP_WORDS)
        folded = fold_text(text, accents=stems is not None)
        words: list[str] = []
        grams: list[str] = []
        for match in _RUN.finditer(folded):
            run = match.group()
            if match.lastgroup == "japanese":
                if language == "zh":
                    words += split_chinese(run)
                else:
                    words += self._lexicon.segment(run) if self._lexicon else _split_runs(run)
            elif not run.isascii() and _HAS_HANGUL.search(run):
                pairs, others = split_korean(run)
                analyzed = [_analyze_latin(other) for other in others]
                words += [*(word for word, _ in analyzed), *pairs]
                grams += [gram for _, other_grams in analyzed for gram in other_grams]
            elif stems is not None and run not in stop_words:
                word, word_grams = _analyze_foreign(run, stems)
                words.append(word)
                grams += word_grams
            elif run not in stop_words:
                analyze = _analyze_cached if len(run) <= WORD_CHARACTERS_MAX else _analyze_latin
                word, word_grams = analyze(run)
                words.append(word)
                grams += word_grams
        if _OPERATOR_SIGN.search(folded):
            grams += [name.translate(_OPERATORS) for name in _REVISION.findall(folded)]
        for run in _CJK_RUN.findall(folded):
            grams += [
                a + b
                for a, b in pairwise(run)
                if a not in _HIRAGANA_ONLY or b not in _HIRAGANA_ONLY
            ]
        return Terms([word for word in words if word], grams)

    def list_spellings(self, text: str) -> list[Spelling]:
        """Return the morphemes of a normalized text with their spellings, by the dictionary."""
        return self._lexicon.list_spellings(text[:RUN_CHARACTERS_MAX]) if self._lexicon else []


@lru_cache
def get_tokenizer(dictionary: str) -> Tokenizer:
    """Return the tokenizer for a setting: `auto` uses the dictionary if installed, `none` never."""
    return Tokenizer(dictionary=dictionary == "auto" and Dictionary is not None)


def fold_text(text: str, *, accents: bool = False) -> str:
    """Return the text without differences in width, case, Latin accents and digit grouping.

    `accents`: keep the accents.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()
    if not folded.isascii() and not accents:
        folded = _MARKS.sub("", _ACCENTED.sub(_strip_accent, folded)).replace("ς", "σ")
    if "," in folded:
        folded = _GROUPED.sub("", folded)
    return _POSSESSIVE.sub("", folded) if "'" in folded or not folded.isascii() else folded


def detect_language(text: str) -> str:
    """Return "ja" if the text contains a Japanese letter, otherwise "en"; a matter of script.

    `languages.recognize_language` distinguishes more languages.
    """
    return "ja" if _JAPANESE.search(text) else "en"


def has_hangul(text: str) -> bool:
    """Return whether a text contains a Korean syllable."""
    return not text.isascii() and _HAS_HANGUL.search(text) is not None


def compute_japanese_share(text: str) -> float:
    """Return the share of the characters that are Japanese letters."""
    return len(_JAPANESE.findall(text)) / len(text) if text else 0.0


def _strip_accent(match: re.Match[str]) -> str:
    return _decompose(match.group())


@lru_cache(maxsize=2048)
def _decompose(character: str) -> str:
    return unicodedata.normalize("NFD", character)[0]


# Dropped parts of speech; the second field separates する, ある, ない from content words.
_GRAMMAR = frozenset(
    ["助詞", "助動詞", "補助記号", "記号", "空白", "代名詞", "連体詞", "接続詞", "感動詞"]
)
_INTERROGATIVE = re.compile("[何誰幾]|いつ|いく[らつ]$|なぜ$|どう$|いかが$|教える$")
_DEPENDENT = frozenset(["非自立可能", "助動詞語幹"])


class _Lexicon:
    """SudachiPy with its small dictionary, loaded at first use. One tokenizer per thread."""

    def __init__(self) -> None:
        self.version = "-".join(
            importlib.metadata.version(name) for name in ("sudachipy", "sudachidict-small")
        )
        self._lock = threading.Lock()
        self._dictionary: Any = None
        self._has_content: Any = None
        self._local = threading.local()
        self._words: dict[int, str] = {}

    def segment(self, run: str) -> list[str]:
        """Return the words of a run of Japanese, with "" for morphemes that are dropped."""
        return [
            word
            if (word := self._words.get(morpheme.word_id())) is not None
            else self._look_up(morpheme)
            for start in range(0, len(run), RUN_CHARACTERS_MAX)
            for morpheme in self._get_tokenizer().tokenize(run[start : start + RUN_CHARACTERS_MAX])
        ]

    def list_spellings(self, text: str) -> list[Spelling]:
        """See `Tokenizer.list_spellings`."""
        return [
            Spelling(morpheme.begin(), morpheme.end(), word, usual)
            for morpheme in self._get_tokenizer().tokenize(text)
            for word, usual in [(self._look_up(morpheme), morpheme.normalized_form())]
        ]

    def _look_up(self, morpheme: Any) -> str:
        """Return the word of a morpheme, cached: reading its fields is as slow as segmentation."""
        form = morpheme.dictionary_form()
        if not self._has_content(morpheme) or _INTERROGATIVE.match(form):
            word = ""
        elif form.isalnum():
            word = _normalize_word(form)
        else:
            return _normalize_word(morpheme.surface())
        if not morpheme.is_oov() and len(self._words) < ENTRIES_CACHED:
            self._words[morpheme.word_id()] = word
        return word

    def _get_tokenizer(self) -> Any:
        if not hasattr(self._local, "tokenizer"):
            with self._lock:
                if self._dictionary is None:
                    self._dictionary = Dictionary(dict="small")
                    self._has_content = self._dictionary.pos_matcher(
                        lambda pos: pos[0] not in _GRAMMAR and pos[1] not in _DEPENDENT
                    )
            self._local.tokenizer = self._dictionary.tokenizer(
                mode=SplitMode.A, fields={"pos", "dictionary_form", "normalized_form"}
            )
        return self._local.tokenizer


def _split_runs(run: str) -> list[str]:
    """Return the words of a run of Japanese, without a dictionary."""
    words = []
    for part in _SCRIPT.findall(run):
        words += (
            [_normalize_word(part)]
            if _IS_KATAKANA.match(part)
            else [word for rest in _INTERROGATIVE_KANJI.split(part) for word in _split_kanji(rest)]
        )
    return words


def _normalize_word(word: str) -> str:
    # サーバー and サーバ are the same word; short words such as キー keep the mark.
    return (word.rstrip("ー") if len(word) >= 4 and _IS_KATAKANA.match(word) else word)[
        :WORD_CHARACTERS_MAX
    ]


def _split_kanji(run: str) -> list[str]:
    """Split a run of kanji into likely words: pairs, and three for the last one if odd."""
    if len(run) < 4:
        return [run]
    last = len(run) - 3 if len(run) % 2 else len(run)
    return [run[i : i + 2] for i in range(0, last, 2)] + ([run[last:]] if last < len(run) else [])


def _analyze_latin(run: str) -> tuple[str, tuple[str, ...]]:
    """Return the stem of a word, and its grams if it is ASCII."""
    word = (
        stem_word(run)
        if run.isascii() and 2 < len(run) <= WORD_CHARACTERS_MAX
        else run[:WORD_CHARACTERS_MAX]
    )
    return word, tuple(_split_grams(run)) if run.isascii() else ()


_analyze_cached = lru_cache(maxsize=WORDS_CACHED)(_analyze_latin)


def _analyze_foreign(run: str, language: str) -> tuple[str, tuple[str, ...]]:
    """Return the stem of a word of another language, and its grams, both without accents."""
    if len(run) > WORD_CHARACTERS_MAX:
        return _analyze_latin(fold_text(run))
    return _analyze_foreign_cached(run, language)


@lru_cache(maxsize=WORDS_CACHED)
def _analyze_foreign_cached(run: str, language: str) -> tuple[str, tuple[str, ...]]:
    word = fold_text(stem_word(run, language)) if len(run) > 2 else fold_text(run)
    folded = fold_text(run)
    return word, tuple(_split_grams(folded)) if folded.isascii() else ()


def _split_grams(word: str) -> list[str]:
    return [word] if len(word) < 5 else [word[i : i + 4] for i in range(len(word) - 3)]


_FOLDED_STOP_WORDS = {
    language: STOP_WORDS.union(words.split(), fold_text(words).split())
    for language, words in FOREIGN_STOP_WORDS.items()
}
