"""The history of a conversation, as it is given to a model."""

import re
from collections.abc import Sequence

import msgspec

from service.core import tokens
from service.core.records import Message

HISTORY_TOKENS_MAX = 2_000
QUESTIONS_MIN, QUESTIONS_MAX = 2, 4
QUESTION_CHARACTERS = 40  # of the last questions together, which are enough to refer to
QUESTION_CHARACTERS_MAX = 1_000  # of each
_CITATION = re.compile(r"\s?[\[［【]\s*\d[\d\s,、–-]{0,20}[\]］】]")


def select_history(messages: Sequence[Message]) -> list[Message]:
    """Return the last messages within `HISTORY_TOKENS_MAX`, beginning with one of the user.

    Citations are removed from answers, since their numbers refer to passages that are not given
    again.
    """
    selected: list[Message] = []
    remaining = HISTORY_TOKENS_MAX
    for message in reversed(messages):
        remaining -= tokens.approximate_tokens(message.content)
        if remaining < 0:
            break
        selected.append(_remove_citations(message) if message.role == "assistant" else message)
    while selected and selected[-1].role != "user":
        selected.pop()
    return selected[::-1]


def join_questions(messages: Sequence[Message]) -> str:
    """Return the last questions of a conversation, which a follow-up question may refer to.

    At least two, and further ones while they are short: "And children?" refers to one before it.
    """
    questions = [message.content for message in messages if message.role == "user"]
    selected: list[str] = []
    for question in questions[: -QUESTIONS_MAX - 1 : -1]:
        if len(selected) >= QUESTIONS_MIN and sum(map(len, selected)) >= QUESTION_CHARACTERS:
            break
        selected.append(question[:QUESTION_CHARACTERS_MAX])
    return "\n".join(selected)


def _remove_citations(message: Message) -> Message:
    return msgspec.structs.replace(message, content=_CITATION.sub("", message.content))
