"""Sentence selection for the extractive model.

A sentence is scored by the terms it shares with the question, weighted by their rarity within the
context. Terms of the heading, title or question above it count in part, so that "within 30 days"
under "Refunds" can answer. Sentences that contain the kind of thing the question asks for (when,
how many, why, …) score higher. The answer is the best sentence, and further ones only while they
cover much of the question that is not covered yet.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec

from service.core.grounding.prompt import refusal_text
from service.core.records import Passage
from service.core.text.blocks import BlockKind
from service.core.text.sentences import split_units
from service.core.text.tokenizer import Tokenizer, detect_language, get_tokenizer

SENTENCES_MAX = 3  # of an answer
SENTENCES_READ_MAX = 2_000  # of the context; further sentences are ignored
COVERED_MIN = 0.12  # of the question's weight; with less the model refuses
GAIN_MIN = 0.2  # of the weight that the context covers, which a further sentence must add
RIVAL_MIN = 0.92  # of the best score: such a rival is quoted too
CUE_MIN = 0.5  # the same for a rival that matches the cues of the question if the best does not
FURTHER_MIN = 0.25  # of the best score
ABOVE_WEIGHT = 0.55  # of a term that occurs only in the heading above
BEFORE_WEIGHT = 0.3  # of a term that occurs only in the previous sentence
BEFORE_REASON_WEIGHT = 0.8  # the same for a sentence that gives a reason for the previous one
PHRASE_WEIGHT = 0.35
# A Latin word has many grams, which together weigh as much as half a word.
GRAM_WEIGHT, LATIN_GRAM_WEIGHT = 0.3, 0.08
CUE_WEIGHT = 0.35
LENGTH_CHARACTERS = 1500  # a sentence of this length scores half
LATER_WEIGHT = 0.03  # decrease of the score per rank of the passage
FRAME_WEIGHT = 0.3  # of words that belong to the form of a question
_FRAME_WORDS = frozenset(
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
    "ja": "引用モードです。言語モデルが接続されていないため、文書の文を引用することしかできません。"
    "文書から答える設定で質問するか、言語モデルを接続してください。",
    "en": "This is quoting mode: no language model is connected, so I can only quote sentences of "
    "the documents. Ask from the documents, or connect a model.",
}

_FIGURE = (
    r"\d|[一二三四五六七八九十百千]+(?=[年月日時分円個名人回度])"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand)\b"
)
_TIME = (
    _FIGURE + r"|曜日?|毎[日週月年]|午前|午後"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|\b(?:week|month|year)s?\b"
    r"|\b(?:january|february|march|april|june|july|august|september|october|november|december)\b"
)
# (pattern of the question, pattern of its answer); lower case except for names
_CUE_PATTERNS = tuple(
    (re.compile(question), re.compile(answer))
    for question, answer in (
        (
            (
                r"\bwhen\b|\b(?:what|which) (?:time|year|day|date)\b"
                r"|\bhow (?:long|soon|often)\b|\bhours\b"
                r"|いつ|何(?:年|月|日|時|分|曜)|どのくらいの(?:期間|時間)|期限|期間|時間は"
            ),
            _TIME,
        ),
        (
            (
                r"\bhow (?:many|much|big|heavy|hot|far|tall|high|old|large|small)\b"
                r"|\bcost\b|\bprice\b|\btemperature\b"
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
# Things that are recognized by their form, and their names.
_PATTERN_NAMES = (
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


_Term = str | tuple[str, str]  # a word; a phrase; ("", gram)


class _Sentence(msgspec.Struct, frozen=True):
    """A candidate, with its terms and those of the heading above and the sentence before it."""

    n: int
    text: str
    own: frozenset[_Term]
    above: frozenset[_Term]
    before: frozenset[_Term]


def quote_answer(question: str, passages: Sequence[Passage], dictionary: str = "auto") -> str:
    """Return sentences of the passages that answer a question, with citations, or the refusal."""
    tokenizer = get_tokenizer(dictionary)
    query = _extract_terms(question, tokenizer)
    sentences = list(_iterate_sentences(passages, tokenizer))
    same = [
        sentence
        for sentence in sentences
        if detect_language(sentence.text) == detect_language(question)
    ]
    # Answers never mix languages; the other one is used only if this one has no answer.
    for candidates in (same, [sentence for sentence in sentences if sentence not in same]):
        if selected := _Selection(question, query, candidates).select():
            gap = "" if detect_language(selected[0].text) == "ja" else " "
            return gap.join(
                f"{sentence.text}{'' if sentence.text[-1] in '。！？' else ' '}[{sentence.n}]"
                for sentence in selected
            )
    return refusal_text(question)


def _iterate_sentences(passages: Sequence[Passage], tokenizer: Tokenizer) -> Iterator[_Sentence]:
    """Yield distinct sentences with terms, except headings and questions."""
    texts: set[str] = set()
    for passage in passages:
        title = _extract_terms(passage.title, tokenizer)
        above, before = title, frozenset[_Term]()
        for start, end, kind, *_ in split_units(passage.text)[:SENTENCES_READ_MAX]:
            text = _clean_sentence(passage.text[start:end])
            own = _extract_terms(passage.text[start:end], tokenizer).union(
                *(
                    _extract_terms(names, tokenizer)
                    for pattern, names in _PATTERN_NAMES
                    if pattern.search(text)
                )
            )
            if kind is BlockKind.HEADING or _QUESTION.search(text):
                above, before = title | own, frozenset()
                continue
            if own and text and text not in texts:
                texts.add(text)
                yield _Sentence(passage.n, text, own, above, before)
            before = own
            if len(texts) >= SENTENCES_READ_MAX:
                return


class _Selection:
    """Scores candidates for a question and selects the fewest that answer it."""

    def __init__(self, question: str, query: frozenset[_Term], candidates: list[_Sentence]) -> None:
        self._query, self._candidates = query, candidates
        self._weights = _weigh_terms(query, candidates)
        self._cues = [answer for asks, answer in _CUE_PATTERNS if asks.search(question.lower())]
        self._asks_why = bool(_WHY.search(question.lower()))

    def select(self) -> list[_Sentence]:
        """Return the best sentence, a rival of it, and sentences that cover further terms."""
        if not self._query or not self._candidates:
            return []
        best = max(self._candidates, key=self._score)
        if self._cover(best) < COVERED_MIN * sum(self._weights.values()) or not (
            self._query & best.own or self._query & best.above
        ):
            return []
        selected = [best, *self._find_rival(best)]
        covered = frozenset().union(*(sentence.own | sentence.above for sentence in selected))
        while len(selected) < SENTENCES_MAX:
            further = self._find_further(best, covered)
            if further is None:
                break
            selected.append(further)
            covered |= further.own
        return selected

    def _sum_weights(self, terms: Iterable[_Term]) -> float:
        return sum(self._weights[term] for term in terms)

    def _cover(self, sentence: _Sentence) -> float:
        """Return the weight of the question's terms that a sentence covers."""
        gives_reason = self._asks_why and _REASON.search(sentence.text)
        before_weight = BEFORE_REASON_WEIGHT if gives_reason else BEFORE_WEIGHT
        above = (self._query & sentence.above) - sentence.own
        before = (self._query & sentence.before) - sentence.own - sentence.above
        return (
            self._sum_weights(self._query & sentence.own)
            + sum(self._weights[term] * ABOVE_WEIGHT for term in above)
            + sum(self._weights[term] * before_weight for term in before)
        )

    def _score(self, sentence: _Sentence) -> float:
        """Score a sentence. Long ones match more by chance, later passages are less relevant."""
        cue = float(self._asks_why and bool(_REASON.search(sentence.text)))
        if self._cues:
            cue += sum(1 for cue in self._cues if cue.search(sentence.text)) / len(self._cues)
        return (
            self._cover(sentence)
            * (1 + CUE_WEIGHT * cue)
            / (1 + len(sentence.text) / LENGTH_CHARACTERS)
            / (1 + LATER_WEIGHT * (sentence.n - 1))
        )

    def _matches_cue(self, sentence: _Sentence) -> bool:
        return any(cue.search(sentence.text) for cue in self._cues)

    def _find_rival(self, best: _Sentence) -> list[_Sentence]:
        """Return a sentence that matches the cues if the best does not, or one nearly as good."""
        needs_cue = bool(self._cues) and not self._matches_cue(best)
        score_min = (CUE_MIN if needs_cue else RIVAL_MIN) * self._score(best)
        rivals = [
            sentence
            for sentence in self._candidates
            if sentence is not best
            and (not needs_cue or self._matches_cue(sentence))
            and self._score(sentence) >= score_min
        ]
        return [max(rivals, key=self._score)] if rivals else []

    def _find_further(self, best: _Sentence, covered: frozenset[_Term]) -> _Sentence | None:
        """Return the sentence that covers most of what is not covered, if it is enough."""
        score_min = FURTHER_MIN * self._score(best)
        gains = {
            sentence: (self._query & sentence.own) - covered
            for sentence in self._candidates
            if self._score(sentence) >= score_min
        }
        # One more word may occur by chance; two are another part of the question.
        enough = [
            sentence
            for sentence, terms in gains.items()
            if sum(isinstance(term, str) for term in terms) >= 2
        ]
        further = max(enough, key=lambda sentence: self._sum_weights(gains[sentence]), default=None)
        available = self._sum_weights(
            term
            for term in self._query
            if any(term in sentence.own for sentence in self._candidates)
        )
        if further is None or self._sum_weights(gains[further]) < GAIN_MIN * available:
            return None
        return further


def _weigh_terms(query: frozenset[_Term], candidates: list[_Sentence]) -> dict[_Term, float]:
    """Return the weight of each term: that of its kind times its idf among the sentences."""
    frequency = Counter(term for sentence in candidates for term in query & sentence.own)
    size = len(candidates)
    return {
        term: _weigh_kind(term)
        * math.log(1 + (size - frequency[term] + 0.5) / (frequency[term] + 0.5))
        for term in query
    }


def _weigh_kind(term: _Term) -> float:
    if isinstance(term, str):
        return FRAME_WEIGHT if term in _FRAME_WORDS else 1.0
    if term[0]:
        return PHRASE_WEIGHT
    return LATIN_GRAM_WEIGHT if term[1].isascii() else GRAM_WEIGHT


def _extract_terms(text: str, tokenizer: Tokenizer) -> frozenset[_Term]:
    """Return words as strings, phrases as pairs, and grams as pairs with an empty string."""
    terms = tokenizer.extract_terms(text)
    phrases = pairwise(terms.words)
    return frozenset[_Term]([*terms.words, *phrases, *(("", gram) for gram in terms.grams)])


def _clean_sentence(sentence: str) -> str:
    """Return a sentence on one line, without emphasis, labels and citations."""
    text = _CITATION.sub("", _EMPHASIS.sub("", _LABEL.sub("", sentence)))
    return _BREAK.sub("" if detect_language(text) == "ja" else " ", text).strip().strip("|").strip()
