"""What a question asks for: the type of its answer, recognized by patterns in both languages.

Types are recognized by patterns (`answer_types.py`). A long prompt is read for its questions, and a
question may join several ("…, and which …?").
"""

import re

import msgspec

from service.core.grounding.answer_types import (
    ANSWER_TYPES,
    CONTRAST,
    DEFINITION,
    FREQUENCY,
    HOW,
    SPECIFIC_TYPES,
    WHY,
)
from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import detect_language

# A query of a few words asks what it names.
SHORT_WORDS, SHORT_JAPANESE_CHARACTERS = 3, 12
LONG_CHARACTERS = 200  # of a longer prompt only the question sentences are read

_ASKS_HOW = re.compile(HOW + r"|\b(?:command|syntax)\b|書式|コマンド")
_COMPARISON = (
    r"\bdifferen|\bcompare|\bversus\b|\bvs\b|\bor\b|\bbetween\b.*\band\b"
    r"|違い|どちら|それとも|比べ|異な"
)
_SEVERAL = re.compile(
    _COMPARISON + r"|\band\b|\bboth\b|[?？].*[?？]|および|及び|ならびに|それぞれ|両方"
    r"|(?:何|いつ|どこ|誰|いくら|どの).*(?:、|何|いつ|どこ|誰|いくら|どの)"
    r"|(?:と|、).*(?:の場所|の名前|の番号|の値段)"
)
_COMPARES = re.compile(_COMPARISON)
_ABBREVIATION_ASKED = re.compile(
    r"\bstands? for\b|\babbreviat|\bacronym|\bexpan(?:d|sion)|の略|略称|正式名|フルスペル"
)
_ACRONYM = re.compile(r"(?<![A-Za-z0-9])[A-Z][A-Za-z0-9]{0,3}[A-Z0-9](?![A-Za-z0-9])")
_DEFINITION_ASKED = re.compile(
    r"^(?:so |and )?what(?: is|'s| are|’s) (?:an? )?\S+(?: \S+){0,3}$"
    r"|\bwhat does \S+(?: \S+){0,2} (?:mean|do)\b"
    r"|\bmeaning of\b|\bdefin|とは|って何|意味"
    r"|は何(?:です|を(?:す|し)|の(?:ため|こと))|の(?:役割|使い方|目的)"
)
_POLAR = re.compile(
    r"^(?:can|may|could|do|does|did|is|are|was|were|will|would|should|must|has|have)\b"
    r"|^(?!.*(?:何|いつ|どこ|誰|だれ|いくら|いくつ|どの|どう|どれ|どんな|なぜ)).*(?:ます|です|ません)か[?？。]?$"
)
_ENDS_AS_QUESTION = re.compile(r"(?:[?？]|か。?)\s*$")
_ASKING = re.compile(
    r"[?？]|\b(?:how|what|when|where|why|who|which|can|could|should|is|are|do|does)\b.*$"
    r"|(?:か|たい|教えて(?:ください|下さい)?)[。．]?$"
)


class Question(msgspec.Struct, frozen=True):
    """A question and what its answer must contain.

    `context`: the prompt, if it says more than `text`. `answers`: patterns of its types.
    `is_specific`: they rarely match by chance. `is_polar`: yes or no answers it. `defines`: a
    definition answers it. `acronyms`: those whose expansion is asked for or would define them.
    """

    text: str
    context: str
    answers: tuple[re.Pattern[str], ...]
    is_specific: bool
    asks_why: bool
    asks_how: bool
    asks_several: bool
    compares: bool
    is_polar: bool
    defines: bool
    acronyms: tuple[str, ...]

    def is_answered_by(self, text: str) -> bool:
        """Return whether a text has what the question asks for, if that can be recognized."""
        return self.is_polar or (
            bool(self.answers) and all(pattern.search(text) for pattern in self.answers)
        )


def read_question(prompt: str) -> Question:
    """Return what a prompt asks for. Of a long one, such as an e-mail, its questions are read."""
    text = _find_questions(prompt) if len(prompt) > LONG_CHARACTERS else prompt
    folded = text.lower()
    is_short = _is_short(text)
    types = [answers for asks, answers in ANSWER_TYPES if asks.search(folded)]
    asks_how, asks_why = bool(_ASKS_HOW.search(folded)), bool(WHY.search(folded))
    types = [FREQUENCY] if FREQUENCY in types else types
    defines = (is_short and not asks_how) or bool(_DEFINITION_ASKED.search(folded))
    if CONTRAST in types:
        types = [answers for answers in types if answers is not DEFINITION]
        defines = False
    specific = any(answers in SPECIFIC_TYPES for answers in types)
    expands = _ABBREVIATION_ASKED.search(folded) or is_short or "とは" in text
    return Question(
        text=text,
        context=prompt if text != prompt else "",
        answers=tuple(types or ([DEFINITION] if is_short else [])),
        is_specific=specific or asks_why,
        asks_why=asks_why,
        asks_how=asks_how,
        asks_several=bool(_SEVERAL.search(folded)),
        compares=bool(_COMPARES.search(folded)),
        is_polar=bool(_POLAR.search(folded.strip())),
        defines=defines,
        acronyms=tuple(_ACRONYM.findall(text)) if expands else (),
    )


def _is_short(text: str) -> bool:
    if _ENDS_AS_QUESTION.search(text):
        return False
    if detect_language(text) == "ja":
        return len(text) <= SHORT_JAPANESE_CHARACTERS
    return len(text.split()) <= SHORT_WORDS


def _find_questions(prompt: str) -> str:
    sentences = [prompt[start:end] for start, end in split_sentences(prompt)]
    questions = [sentence for sentence in sentences if re.search("[?？]", sentence)] or [
        sentence for sentence in sentences if _ASKING.search(sentence.lower().strip())
    ]
    gap = "" if detect_language(prompt) == "ja" else " "
    return gap.join(questions) or prompt
