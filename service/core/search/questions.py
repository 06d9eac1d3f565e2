"""The questions within a long prompt, such as an e-mail, by which abstention is decided.

Most words of an e-mail say nothing about its question, so that no passage covers a large share of
them. Sentences count as questions if they end like one; without such a sentence, those that contain
a request. A short question ("How long does it take?") may depend on the sentence before it and is
extended by it. A single sentence can join several questions (`question_parts.py`).
"""

import re

from service.core.text.question_parts import split_parts
from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import Tokenizer

PROMPT_CHARACTERS_MIN = 40  # shorter prompts are one question
QUESTIONS_MAX = 3  # the last ones of a prompt
WORDS_MIN, PRONOUN_WORDS_MIN = 2, 3  # of a question that does not depend on the sentence before it
_CLOSING = r"[\s」』）)\]”’\"'»*_]*$"
_QUESTION = re.compile(
    rf"(?:[?？؟]|(?:です|ます|でしょう|ません|ました|でした|だろう|の|ない)か[。．.]?){_CLOSING}"
)
_REQUEST = re.compile(
    r"\b(?:please (?:tell|explain|describe|show)|(?:tell|show|explain to) me|let me know"
    r"|(?:could|can|would) (?:you|someone|anyone)|(?:like|need|want) to (?:know|understand)"
    r"|(?:am|was|are) wondering|(?:don't|do not|not sure|no idea) (?:know )?(?:how|what|where|why"
    r"|when|which|who|if|whether))\b"
    r"|教えて|ご教[示授]|知りたい|聞きたい|伺いたい|お聞かせ|説明して|分からない|わからない"
    r"|分かりません|わかりません",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"\b(?:it|its|that|this|these|those|they|them|their)\b|それ|これ|その|この|あれ", re.IGNORECASE
)


def find_questions(prompt: str, tokenizer: Tokenizer) -> list[str]:
    """Return the questions within a prompt, at most `QUESTIONS_MAX`; [] if it is one question."""
    if len(prompt) < PROMPT_CHARACTERS_MIN:
        return []
    sentences = [prompt[start:end] for start, end in split_sentences(prompt)]
    if len(sentences) < 2:
        return split_parts(prompt)[:QUESTIONS_MAX]
    for pattern in (_QUESTION, _REQUEST):
        places = [n for n, sentence in enumerate(sentences) if pattern.search(sentence)]
        if places:
            return [_complete(sentences, n, tokenizer) for n in places[-QUESTIONS_MAX:]]
    return []


def _complete(sentences: list[str], n: int, tokenizer: Tokenizer) -> str:
    """Return a sentence, after the previous one if it has too few words of its own."""
    words_min = PRONOUN_WORDS_MIN if _PRONOUN.search(sentences[n]) else WORDS_MIN
    if len(set(tokenizer.extract_terms(sentences[n]).words)) >= words_min:
        return sentences[n]
    return " ".join(sentences[max(0, n - 1) : n + 1])
