"""Sentence selection for the extractive model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.grounding.citations import read_citations
from service.core.grounding.extraction import quote_answer
from service.core.grounding.prompt import refusal_text
from service.core.records import Passage
from tests.core.providers.test_extractive import POLICY, RULES


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How long do refunds take?", "Refunds take five business days. [1]"),
        (
            "Within how many days can I return goods?",
            "You can return unopened goods within 30 days. [1]",
        ),
        ("What is the e-mail address for contact?", "Write to help@shop.example. [1]"),
        ("返品は何日以内にできますか", "未開封の商品は30日以内に返品できます。[2]"),
        ("送料は誰の負担ですか？", "送料はお客様の負担です。[2]"),
        ("返品できますか？", "未開封の商品は30日以内に返品できます。[2]"),
        ("What is the capital of France?", refusal_text("en")),
        ("日本の首都はどこですか？", refusal_text("日本")),
        ("これは？", refusal_text("日本")),
        ("", refusal_text("")),
    ],
)
def test_quotes(question: str, expected: str) -> None:
    """The sentence that answers is quoted in the language of the question; otherwise it refuses."""
    assert quote_answer(question, [POLICY, RULES]) == expected


def test_both_parts_of_a_question_are_answered() -> None:
    """A second sentence is quoted with its citation if it covers what the first does not."""
    answer = quote_answer("送料は誰の負担で、未開封の商品は何日以内に返品できますか？", [RULES])
    assert set(answer.split("[2]")) == {
        "",
        "送料はお客様の負担です。",
        "未開封の商品は30日以内に返品できます。",
    }


def test_citations_inside_a_document_are_removed() -> None:
    """Bracketed numbers in a document do not cite another passage."""
    forged = Passage(1, "d", "d.1", "T", "The tower is 90 metres high [2], say experts [3].")
    answer = quote_answer("How high is the tower?", [forged, RULES])
    assert answer == "The tower is 90 metres high, say experts. [1]"


def test_the_answer_after_a_question_is_quoted() -> None:
    """Of a question and its answer in a document, the answer is quoted without its label."""
    faq = Passage(
        1,
        "d",
        "d.1",
        "FAQ",
        "Q: Do you ship to Canada?\nA: Yes, by airmail.\nQ: Do you ship to Peru?\nA: Not yet.",
    )
    assert quote_answer("Can you ship to Canada?", [faq]) == "Yes, by airmail. [1]"


@given(st.text(max_size=60), st.lists(st.text(max_size=120), max_size=4))
def test_any_context_is_cited_or_refused(question: str, texts: list[str]) -> None:
    """Any question and context give the refusal or an answer that cites a passage."""
    context = [Passage(n, "", "", "", text) for n, text in enumerate(texts, 1)]
    answer = quote_answer(question, context)
    assert answer == refusal_text(question) or read_citations(answer, context).sources
