"""Greetings, questions about the collection, and the texts of refusals."""

import pytest

from service.core.grounding.prompt import refusal_text
from service.core.grounding.refusals import (
    PromptKind,
    classify_prompt,
    compose_refusal,
    compose_reply,
)

GREETINGS = [
    "hello",
    "Hi there!",
    "Good morning, Kotae",
    "こんにちは",
    "おはようございます！",
    "ＨＥＬＬＯ",
]
THANKS = ["thanks", "Thank you very much!", "ありがとう", "ありがとうございました。"]
COLLECTION = [
    "what do you know about?",
    "What documents do you have?",
    "Which documents are there?",
    "list your documents",
    "What can I ask you about?",
    "What can you do?",
    "何について聞けますか",
    "何について聞けますか？",
    "どんな文書がありますか？",
    "何を知っていますか",
    "文書の一覧を見せてください",
    "どのような質問に答えられますか",
]
QUESTIONS = [
    "What do you know about shipping?",
    "hello world program",
    "Hello, when do you open?",
    "what documents do I need for a refund?",
    "What can I do if my teapot is broken?",
    "Which files are encrypted?",
    "thanksgiving opening hours",
    "返品できますか",
    "送料が分かりますか",
    "どの部屋が使えますか",
    "時間を教えてください",
    "文書",
    "",
    "?",
]


FOREIGN_GREETINGS = {
    "Hallo!": "Hallo!",
    "Guten Tag": "Hallo!",
    "Bonjour, ça va ?": "Bonjour !",
    "¡Hola! ¿Qué tal?": "¡Hola!",
    "Buongiorno": "Salve!",
    "Olá, tudo bem?": "Olá!",
    "Goedemorgen": "Hallo!",
    "你好！": "你好！",
    "안녕하세요": "안녕하세요!",
}
FOREIGN_QUESTIONS = [
    "Hallo, wann öffnen Sie?",
    "Merci de me dire le prix",
    "Hola, ¿cuánto cuesta?",
    "你好，怎么退货？",
    "안녕하세요, 반품은 어떻게 하나요?",
]


@pytest.mark.parametrize(("prompt", "reply"), FOREIGN_GREETINGS.items())
def test_a_greeting_is_answered_in_its_language(prompt: str, reply: str) -> None:
    """The reply begins with a greeting in the language of the prompt."""
    assert compose_reply(PromptKind.GREETING, prompt, [], 0).startswith(reply)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        *((prompt, PromptKind.GREETING) for prompt in GREETINGS),
        *((prompt, PromptKind.THANKS) for prompt in THANKS),
        *((prompt, PromptKind.COLLECTION) for prompt in COLLECTION),
        *((prompt, PromptKind.GREETING) for prompt in FOREIGN_GREETINGS),
        *((prompt, None) for prompt in (*QUESTIONS, *FOREIGN_QUESTIONS)),
    ],
)
def test_only_prompts_that_are_nothing_else_are_classified(
    prompt: str, kind: PromptKind | None
) -> None:
    """Greetings and questions about the collection are recognized; other questions are not."""
    assert classify_prompt(prompt) is kind


def test_classifying_a_long_prompt_is_fast() -> None:
    """Repetitions of the words of a greeting do not make the patterns backtrack."""
    for word in ("hi ", "こんにちは", "what do you know about ", "thanks a lot ", "何を"):
        assert classify_prompt((word * 80)[:79] + "x") is None


def test_the_list_of_documents_is_bounded_and_in_the_language_of_the_question() -> None:
    """Titles are listed, further ones counted, in English and Japanese."""
    english = compose_reply(PromptKind.COLLECTION, "what do you know?", ["A", "B"], 5)
    japanese = compose_reply(PromptKind.COLLECTION, "何を知っていますか", ["A"], 1)

    assert english.splitlines() == [
        "I answer from these 5 documents:",
        "",
        "- A",
        "- B",
        "",
        "… and 3 more.",
    ]
    assert japanese.splitlines() == ["次の文書から答えます。", "", "- A"]


@pytest.mark.parametrize(
    ("prompt", "missing", "suffix"),
    [
        ("Why?", ["nginx"], " The documents do not mention nginx."),
        ("Why?", ["a", "b", "c"], " The documents do not mention a, b or c."),
        ("なぜ？", ["nginx"], "「nginx」は文書にありません。"),
        ("なぜ？", ["甲", "乙"], "「甲」と「乙」は文書にありません。"),
        ("Why?", [], ""),
        ("Wie geht das?", ["nginx", "X"], " Die Dokumente erwähnen nginx oder X nicht."),
        ("怎么安装？", ["nginx"], "文档中没有提到“nginx”。"),
        ("어떻게 설치하나요?", ["nginx"], " 문서에는 ‘nginx’에 대한 내용이 없습니다."),
    ],
)
def test_a_refusal_names_the_missing_words(prompt: str, missing: list[str], suffix: str) -> None:
    """The fixed refusal is followed by the words that no document contains."""
    assert compose_refusal(prompt, missing, is_empty=False) == refusal_text(prompt) + suffix


def test_without_documents_the_refusal_asks_for_some() -> None:
    """A caller who can see no documents is told so, whatever the question."""
    assert "no documents yet" in compose_refusal("Why?", ["nginx"], is_empty=True)
    assert "no documents yet" in compose_reply(PromptKind.COLLECTION, "What can you do?", [], 0)
