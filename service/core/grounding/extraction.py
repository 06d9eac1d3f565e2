"""Which sentences of the context answer a question: the embedded model's whole mind. Pure.

A sentence is scored by the terms it shares with the question, weighed by how rare they are within the context; terms of
the heading, title or question it stands under count in part, so that "within 30 days" under "Refunds" can answer. The
kind of the question (when, how many, why, …) favours sentences that hold that kind of thing. The answer is the best
sentence, and further ones only while they add much that the question asked and nobody said yet.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from service.core.grounding.prompt import refusal_text
from service.core.records import Passage
from service.core.text.chunking import is_heading
from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import Tokenizer, detect_language, get_tokenizer

SENTENCES_MAX = 3  # of an answer
SENTENCES_READ_MAX = 2_000  # of the context; what comes after is not looked at
COVERED_MIN = 0.12  # of the question's weight: below it no sentence fits
GAIN_MIN = 0.2  # of the weight that the context can say at all, which a further sentence must add
RIVAL_MIN = 0.92  # of what the best sentence is worth: so good a rival is quoted too
CUE_MIN = 0.5  # the same for a rival that holds the kind of thing that was asked for, which the best does not
FURTHER_MIN = 0.25  # of what the best sentence is worth
ABOVE_WEIGHT = 0.55  # of a term that stands only in the heading above
BEFORE_WEIGHT = 0.3  # of a term that stands only in the sentence before
BEFORE_REASON_WEIGHT = (
    0.8  # the same for a sentence that gives a reason, which is a reason for what was said before
)
PHRASE_WEIGHT = 0.35
GRAM_WEIGHT, LATIN_GRAM_WEIGHT = (
    0.3,
    0.08,
)  # a Latin word has many grams, which together weigh as much as half a word
CUE_WEIGHT = 0.35
LENGTH_CHARACTERS = 1500  # a sentence as long as this is worth half
LATER_WEIGHT = 0.03  # by which a passage found later is worth less, for each place
FRAME_WEIGHT = 0.3  # of words that belong to asking rather than to what is asked
_FRAME = frozenset(
    [
        "long",
        "take",
        "mean",
        "happen",
        "often",
        "kind",
        "call",
        "tell",
        "want",
        "use",
        "go",
        "教",
        "知",
        "方",
        "場合",
        "使",
    ]
)

FREE = {
    "ja": "これは内蔵の抽出モデルで、預かった文書の文を引用することしかできません。"
    "文書をもとに答えるには、grounded を true にしてお尋ねください。",
    "en": "This is the embedded extractive model: it can only quote the documents it was given. "
    "Ask with grounded set to true to get an answer from them.",
}

_FIGURE = (
    r"\d|[一二三四五六七八九十百千]+(?=[年月日時分円個名人回度])"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand)\b"
)
_TIME = (
    _FIGURE
    + r"|曜日?|毎[日週月年]|午前|午後|\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|\b(?:week|month|year)s?\b"
    r"|\b(?:january|february|march|april|june|july|august|september|october|november|december)\b"
)
# (what a question says, what its answer is likely to hold); both in lower case but for names
_CUES = tuple(
    (re.compile(asked), re.compile(holds))
    for asked, holds in (
        (
            (
                r"\bwhen\b|\b(?:what|which) (?:time|year|day|date)\b|\bhow (?:long|soon|often)\b|\bhours\b"
                r"|いつ|何(?:年|月|日|時|分|曜)|どのくらいの(?:期間|時間)|期限|期間|時間は"
            ),
            _TIME,
        ),
        (
            (
                r"\bhow (?:many|much|big|heavy|hot|far|tall|high|old|large|small)\b|\bcost\b|\bprice\b|\btemperature\b"
                r"|いくら|いくつ|どのくらい|どれくらい|何[^かがをもでと]{1,2}|料金|重さ|温度"
            ),
            _FIGURE + r"|無料|\bfree\b",
        ),
        (
            r"いくら|何円|料金|値段|費用|\bhow much\b|\bcost|\bprice",
            r"円|¥|\$|€|無料|\b(?:yen|dollars?|euros?|free)\b",
        ),
        (
            r"\bmean(?:s|ing)?\b|\bwhat(?: is|'s) an? |とは|意味|由来",
            r"\b(?:is|are) (?:an?|the)\b|\bmeans?\b|のこと|意味|由来|である。",
        ),
        (
            r"\bwhere\b|どこ|場所",
            r"\b(?:in|at|on|near|next to|room|floor|basement)\b|[階市町村駅前横室館]|にあり|地下",
        ),
        (r"\bwho\b|誰|だれ", r"\bby\b|[A-Z][a-z]+ [A-Z][a-z]+|さん|氏|者|係|担当"),
    )
)
# What a reader recognises without being told its name.
_SHOWS = (
    (re.compile(r"\S@\S+\.\S"), "e-mail email address メールアドレス 連絡先"),
    (re.compile(r"\d{2,5}-\d{2,4}-?\d{3,4}"), "phone telephone number 電話番号 連絡先"),
    (re.compile(r"https?://"), "URL web site address link サイト"),
)
_WHY = re.compile(r"\bwhy\b|なぜ|どうして|理由")
_REASON = re.compile(
    r"\b(?:because|since|so that|due to)\b|(?:ため|から)(?:です|だ|に?、|。|$)|ので"
)
_QUESTION = re.compile(r"[?？][」』”\")）]*$|(?:です|ます|でしょう|ません|ました)か。?$")
_LABEL = re.compile(r"^(?:[QA]|質問|回答|答え?|Question|Answer)\s?[:.：．、]\s?")
_CITATION = re.compile(r"\s?[\[［【]\s*\d[\d\s,、–-]{0,20}[\]］】]")
_EMPHASIS = re.compile(r"\*\*|__|`")
_BREAK = re.compile(r"[ \t\u3000]*\n[ \t\u3000]*")


_Kind = str | tuple[str, str]  # a word; a phrase, or ("", gram)


class _Sentence(msgspec.Struct, frozen=True):
    """A sentence that may be quoted, with the kinds of terms that it and what is above and before it have."""

    n: int
    text: str
    own: frozenset[_Kind]
    above: frozenset[_Kind]
    before: frozenset[_Kind]


def quote_answer(question: str, passages: Sequence[Passage], dictionary: str = "auto") -> str:
    """The answer: sentences of the passages, each with its citation, or that none fits. In the question's language."""
    using = get_tokenizer(dictionary)
    asked = _kinds(question, using)
    found = list(_readable(passages, using))
    same = [
        sentence
        for sentence in found
        if detect_language(sentence.text) == detect_language(question)
    ]
    # The other language only where the context has nothing to say in this one: an answer never mixes them.
    for candidates in (same, [sentence for sentence in found if sentence not in same]):
        if chosen := _choose(question, asked, candidates):
            gap = "" if detect_language(chosen[0].text) == "ja" else " "
            return gap.join(
                f"{one.text}{'' if one.text[-1] in '。！？' else ' '}[{one.n}]" for one in chosen
            )
    return refusal_text(question)


def _readable(passages: Sequence[Passage], using: Tokenizer) -> Iterator[_Sentence]:
    """Every sentence that could be an answer, once: no headings, no questions, nothing without a term."""
    seen: set[str] = set()
    for passage in passages:
        title = _kinds(passage.title, using)
        above, before = title, frozenset[_Kind]()
        for start, end in split_sentences(passage.text)[:SENTENCES_READ_MAX]:
            text = _clean(passage.text[start:end])
            own = _kinds(passage.text[start:end], using).union(
                *(_kinds(names, using) for shape, names in _SHOWS if shape.search(text))
            )
            if is_heading(passage.text, start) or _QUESTION.search(text):
                above, before = title | own, frozenset()
                continue
            if own and text and text not in seen:
                seen.add(text)
                yield _Sentence(passage.n, text, own, above, before)
            before = own
            if len(seen) >= SENTENCES_READ_MAX:
                return


def _choose(question: str, asked: frozenset[_Kind], candidates: list[_Sentence]) -> list[_Sentence]:
    """The fewest sentences that say what was asked."""
    if not asked or not candidates:
        return []
    weight = _weights(asked, candidates)
    total = sum(weight.values())
    cues = [holds for asks, holds in _CUES if asks.search(question.lower())]
    why = bool(_WHY.search(question.lower()))

    def covered(one: _Sentence) -> float:
        before = BEFORE_REASON_WEIGHT if why and _REASON.search(one.text) else BEFORE_WEIGHT
        return (
            sum(weight[kind] for kind in asked & one.own)
            + sum(weight[kind] * ABOVE_WEIGHT for kind in (asked & one.above) - one.own)
            + sum(weight[kind] * before for kind in (asked & one.before) - one.own - one.above)
        )

    def worth(one: _Sentence) -> float:
        cue = sum(1 for holds in cues if holds.search(one.text)) / len(cues) if cues else 0
        cue += why and bool(_REASON.search(one.text))
        # A longer sentence shares more by chance; a later passage was found less relevant.
        return (
            covered(one)
            * (1 + CUE_WEIGHT * cue)
            / (1 + len(one.text) / LENGTH_CHARACTERS)
            / (1 + LATER_WEIGHT * (one.n - 1))
        )

    best = max(candidates, key=worth)
    if covered(best) < COVERED_MIN * total or not (asked & best.own or asked & best.above):
        return []
    chosen = [best, *_missing(best, candidates, worth, cues)]
    sayable = sum(weight[kind] for kind in asked if any(kind in one.own for one in candidates))
    said = frozenset().union(*(one.own | one.above for one in chosen))
    while len(chosen) < SENTENCES_MAX:
        gains = {
            one: (asked & one.own) - said
            for one in candidates
            if worth(one) >= FURTHER_MIN * worth(best)
        }
        # One word more may be there by chance; two are another part of the question.
        enough = [
            one for one, new in gains.items() if sum(isinstance(kind, str) for kind in new) >= 2
        ]
        further = max(
            enough, key=lambda one: sum(weight[kind] for kind in gains[one]), default=None
        )
        if further is None or sum(weight[kind] for kind in gains[further]) < GAIN_MIN * sayable:
            break
        chosen.append(further)
        said |= further.own
    return chosen


def _missing(
    best: _Sentence,
    candidates: list[_Sentence],
    worth: Callable[[_Sentence], float],
    cues: list[re.Pattern[str]],
) -> list[_Sentence]:
    """A sentence that says the kind of thing that was asked for, if the best does not; or one that is nearly as good."""
    others = [one for one in candidates if one is not best]
    if cues and not any(holds.search(best.text) for holds in cues):
        others = [
            one
            for one in others
            if any(holds.search(one.text) for holds in cues) and worth(one) >= CUE_MIN * worth(best)
        ]
    else:
        others = [one for one in others if worth(one) >= RIVAL_MIN * worth(best)]
    return [max(others, key=worth)] if others else []


def _weights(asked: frozenset[_Kind], candidates: list[_Sentence]) -> dict[_Kind, float]:
    """What each kind of term is worth: its weight by kind times its rarity among the sentences."""
    frequency = Counter(kind for one in candidates for kind in asked & one.own)
    size = len(candidates)
    return {
        kind: _kind_weight(kind)
        * math.log(1 + (size - frequency[kind] + 0.5) / (frequency[kind] + 0.5))
        for kind in asked
    }


def _kind_weight(kind: _Kind) -> float:
    if isinstance(kind, str):
        return FRAME_WEIGHT if kind in _FRAME else 1.0
    if kind[0]:
        return PHRASE_WEIGHT
    return LATIN_GRAM_WEIGHT if kind[1].isascii() else GRAM_WEIGHT


def _kinds(text: str, using: Tokenizer) -> frozenset[_Kind]:
    """Words as strings, phrases as pairs, grams as pairs that begin with nothing."""
    found = using.extract_terms(text)
    pairs = pairwise(found.words)
    return frozenset[_Kind]([*found.words, *pairs, *(("", gram) for gram in found.grams)])


def _clean(sentence: str) -> str:
    """A sentence as it is quoted: on one line, without emphasis, labels and citations of its own, which would be ours."""
    text = _CITATION.sub("", _EMPHASIS.sub("", _LABEL.sub("", sentence)))
    return _BREAK.sub("" if detect_language(text) == "ja" else " ", text).strip().strip("|").strip()
