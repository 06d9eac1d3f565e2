"""The history of a conversation that a model gets."""

from service.core import tokens
from service.core.grounding.history import HISTORY_TOKENS_MAX, join_questions, select_history
from service.core.records import Message


def build_turns(count: int, text: str) -> list[Message]:
    """Build questions with answers."""
    return [
        message
        for n in range(count)
        for message in (Message("user", f"{n}?"), Message("assistant", f"{n}: {text}"))
    ]


def test_the_last_messages_within_the_budget_are_selected() -> None:
    """The newest messages are kept in order, beginning with a question, within the budget."""
    turns = build_turns(50, "word " * 200)

    selected = select_history(turns)

    assert selected == turns[-len(selected) :]
    assert selected[0].role == "user"
    used = sum(tokens.approximate_tokens(message.content) for message in selected)
    assert 0.7 * HISTORY_TOKENS_MAX < used <= HISTORY_TOKENS_MAX


def test_citations_are_removed_from_answers_only() -> None:
    """Numbers of passages that are not given again are removed."""
    history = [Message("user", "See [1]?"), Message("assistant", "Thirty days. [1][2]")]

    assert [message.content for message in select_history(history)] == ["See [1]?", "Thirty days."]


def test_a_message_beyond_the_budget_ends_the_history() -> None:
    """A very long last answer leaves no history rather than a part of it."""
    turns = build_turns(3, "x" * HISTORY_TOKENS_MAX * 8)

    assert select_history(turns) == select_history([]) == []


def test_the_last_questions_are_joined() -> None:
    """At least two questions, the last first; short ones bring those before them; no answers."""
    questions = [Message("user", text) for text in ("a" * 50, "b?", "c?", "d?")]
    answers = [Message("assistant", "x")] * 4
    turns = [message for pair in zip(questions, answers, strict=True) for message in pair]

    assert join_questions(turns) == "d?\nc?\nb?\n" + "a" * 50
    assert join_questions([questions[3], questions[0], questions[0]]) == "\n".join(["a" * 50] * 2)
    assert join_questions([]) == ""
