"""Japanese words in another script: hiragana for katakana, romaji, long vowels.

Words that sound alike are compared by a key: their katakana without long vowels and small letters.
Latin words that can be read as romaji (Hepburn or Kunrei) have a key, too, so that デビアン is
"debian".
"""

import re
from collections.abc import Iterator

LETTERS_MIN = 3  # of a run of hiragana that is read as another word
_ROMAJI = {
    "a": "ア", "i": "イ", "u": "ウ", "e": "エ", "o": "オ",
    "ka": "カ", "ki": "キ", "ku": "ク", "ke": "ケ", "ko": "コ",
    "sa": "サ", "shi": "シ", "si": "シ", "su": "ス", "se": "セ", "so": "ソ",
    "ta": "タ", "chi": "チ", "ti": "チ", "tsu": "ツ", "tu": "ツ", "te": "テ", "to": "ト",
    "na": "ナ", "ni": "ニ", "nu": "ヌ", "ne": "ネ", "no": "ノ",
    "ha": "ハ", "hi": "ヒ", "fu": "フ", "hu": "フ", "he": "ヘ", "ho": "ホ",
    "ma": "マ", "mi": "ミ", "mu": "ム", "me": "メ", "mo": "モ",
    "ya": "ヤ", "yu": "ユ", "yo": "ヨ",
    "ra": "ラ", "ri": "リ", "ru": "ル", "re": "レ", "ro": "ロ",
    "wa": "ワ", "wo": "オ", "n": "ン",
    "ga": "ガ", "gi": "ギ", "gu": "グ", "ge": "ゲ", "go": "ゴ",
    "za": "ザ", "ji": "ジ", "zi": "ジ", "zu": "ズ", "ze": "ゼ", "zo": "ゾ",
    "da": "ダ", "di": "ディ", "du": "ドゥ", "de": "デ", "do": "ド",
    "ba": "バ", "bi": "ビ", "bu": "ブ", "be": "ベ", "bo": "ボ",
    "pa": "パ", "pi": "ピ", "pu": "プ", "pe": "ペ", "po": "ポ",
    "sha": "シャ", "shu": "シュ", "sho": "ショ", "she": "シェ",
    "cha": "チャ", "chu": "チュ", "cho": "チョ", "che": "チェ",
    "ja": "ジャ", "ju": "ジュ", "jo": "ジョ", "je": "ジェ",
    "fa": "ファ", "fi": "フィ", "fe": "フェ", "fo": "フォ", "va": "ヴァ", "vi": "ヴィ",
}  # fmt: skip
for _consonant, _kana in {
    "k": "キ", "s": "シ", "t": "チ", "n": "ニ", "h": "ヒ", "m": "ミ", "r": "リ",
    "g": "ギ", "z": "ジ", "b": "ビ", "p": "ピ",
}.items():  # fmt: skip
    for _vowel, _small in (("a", "ャ"), ("u", "ュ"), ("o", "ョ")):
        _ROMAJI[f"{_consonant}y{_vowel}"] = _kana + _small
_SYLLABLE = re.compile("|".join(sorted(_ROMAJI, key=len, reverse=True)))
_DOUBLED = re.compile(r"([kstpgdbzjc])(?=\1)")
KATAKANA = re.compile("[\u30a1-\u30fa\u30fc]+$")  # with `match`: a word in katakana
_LARGE = str.maketrans("ァィゥェォャュョ", "アイウエオヤユヨ", "ーッ")
_LONG_O = re.compile("(?<=[オコソトノホモヨロゴゾドボポ])ウ|(?<=[ウクスツヌフムユルグズブプ])ウ")
_HIRAGANA_RUN = re.compile("[\u3041-\u3096ー]+")
_PARTICLES = frozenset("のをにがはとでへもや")


def to_katakana(text: str) -> str:
    """Return a text with its hiragana as katakana."""
    return "".join(chr(ord(c) + 96) if "\u3041" <= c <= "\u3096" else c for c in text)


def compute_key(word: str) -> str | None:
    """Return the key of a word in kana or romaji, or None if it is neither."""
    kana = word if KATAKANA.match(word) else read_romaji(word)
    return _LONG_O.sub("", kana.translate(_LARGE)) if kana else None


def read_romaji(word: str) -> str | None:
    """Return a Latin word in lower case as katakana, or None if it is not romaji."""
    if not word.isascii():
        return None
    kana: list[str] = []
    position = 0
    while position < len(word):
        if _DOUBLED.match(word, position):
            position += 1  # ッ, which keys do not contain
            continue
        syllable = _SYLLABLE.match(word, position)
        if syllable is None:
            return None
        kana.append(_ROMAJI[syllable[0]])
        position = syllable.end()
    return "".join(kana)


def list_hiragana_parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of runs of hiragana that may be words, with their positions, longest first.

    They begin and end with the run or beside a particle.
    """
    for run in _HIRAGANA_RUN.finditer(text):
        letters = run[0]
        size = len(letters)
        begins = [n for n in range(size) if n == 0 or letters[n - 1] in _PARTICLES]
        ends = [n for n in range(1, size + 1) if n == size or letters[n] in _PARTICLES]
        for begin in begins[:8]:
            for end in reversed(ends[:12]):
                if end - begin >= LETTERS_MIN:
                    yield run.start() + begin, letters[begin:end]
