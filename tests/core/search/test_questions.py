"""The questions within long prompts."""

import pytest

from service.core.search.questions import QUESTIONS_MAX, find_questions
from service.core.text.tokenizer import get_tokenizer

TOKENIZER = get_tokenizer("auto")
MAIL = """Hi team,

I hope you are well. The old boiler makes strange noises since Monday. {question} I would be glad
about an answer before the meeting.

Kind regards,
Tom"""


@pytest.mark.parametrize(
    "question",
    [
        "When is the boiler in the cellar inspected?",
        "Could you tell me how the boiler in the cellar is drained.",
        "I do not know who has the key of the cellar.",
    ],
)
def test_an_email_is_its_question(question: str) -> None:
    """A sentence that ends like a question, or contains a request, is found in a mail."""
    assert find_questions(MAIL.format(question=question), TOKENIZER) == [question]


def test_japanese_questions_are_found() -> None:
    """A question without a question mark ends with か."""
    prompt = (
        "お世話になっております。地下のボイラーの音が気になります。"
        "ボイラーの点検は毎年何月に行われますか。よろしくお願いいたします。"
    )
    assert find_questions(prompt, TOKENIZER) == ["ボイラーの点検は毎年何月に行われますか。"]


def test_a_question_without_words_of_its_own_is_completed() -> None:
    """A short question is extended by the sentence before it."""
    prompt = "The boiler in the cellar needs an inspection. How long does it take?"
    assert find_questions(prompt, TOKENIZER) == [prompt]


def test_joined_questions_are_found() -> None:
    """The parts of a sentence that joins two questions are judged by themselves."""
    prompt = "When is the boiler in the cellar inspected, and who has the key?"
    assert find_questions(prompt, TOKENIZER) == [
        "When is the boiler in the cellar inspected",
        "who has the key?",
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Boiler? Cellar?",
        "When is the boiler in the cellar inspected by the owner of the house?",
        "The boiler is warm. The cellar is cold. The key is lost. The meeting is over.",
    ],
)
def test_other_prompts_are_judged_as_a_whole(prompt: str) -> None:
    """Short prompts, single questions and texts without a question have no questions within."""
    assert find_questions(prompt, TOKENIZER) == []


def test_the_number_of_questions_is_limited() -> None:
    """Of many questions the last ones count."""
    prompt = " ".join(f"Who painted wall {n} of the northern tower?" for n in range(50))
    questions = find_questions(prompt, TOKENIZER)
    assert len(questions) == QUESTIONS_MAX
    assert questions[-1] == "Who painted wall 49 of the northern tower?"
