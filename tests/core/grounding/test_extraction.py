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
    """What answers is quoted in the language of the question; otherwise it refuses."""
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
    citations = read_citations(answer, context, question)
    assert answer == refusal_text(question) or citations.sources


def passage(text: str, title: str = "Guide") -> Passage:
    """A context of one passage."""
    return Passage(1, "d", "d.1", title, text)


@pytest.mark.parametrize(
    ("question", "text", "best"),
    [
        pytest.param(
            "How long does an export take?",
            "Exports take place at night. An export with many rows takes twenty minutes.",
            "An export with many rows takes twenty minutes. [1]",
            id="a duration",
        ),
        pytest.param(
            "送料はいくらですか",
            "送料は注文の画面に表示されます。全国一律の送料は600円です。",
            "全国一律の送料は600円です。[1]",
            id="a price",
        ),
        pytest.param(
            "Why is the second import slow?",
            "The second import is slow. This is because the second import checks each row.",
            "This is because the second import checks each row. [1]",
            id="the reason, not what repeats the question",
        ),
        pytest.param(
            "What does DSO stand for?",
            "DSO files are loaded at the start. A Dynamic Shared Object (DSO) is a module. "
            "Some users stand up for them.",
            "A Dynamic Shared Object (DSO) is a module. [1]",
            id="the expansion of an abbreviation",
        ),
        pytest.param(
            "いつ開館しましたか",
            "開館を祝う式典は盛大でした。博物館は1931年に開館しました。",
            "博物館は1931年に開館しました。[1]",
            id="a date",
        ),
    ],
)
def test_the_type_of_the_question_decides(question: str, text: str, best: str) -> None:
    """Of similar sentences, the one with what the question asks for is cited first."""
    answer = quote_answer(question, [passage(text)])
    assert answer[: answer.index("]") + 1].endswith(best)


def test_both_sides_of_a_comparison_are_quoted() -> None:
    """A comparison of two things in different places quotes both."""
    text = (
        "# VIRTUAL\n\nA VIRTUAL column is computed when it is read.\n\n# Size\n\nTables are large."
        "\n\n# STORED\n\nA STORED column is computed when it is written.\n"
    )
    answer = quote_answer("What is the difference between VIRTUAL and STORED?", [passage(text)])
    assert "when it is read" in answer
    assert "when it is written" in answer
    assert "large" not in answer


def test_one_question_has_one_place() -> None:
    """Another passage with some words of the question is not quoted."""
    other = Passage(2, "e", "e.1", "Other", "The price of shipping a piano to Peru is high.")
    answer = quote_answer(
        "What does shipping to Canada cost?",
        [passage("Shipping to Canada costs 40 euros."), other],
    )
    assert answer == "Shipping to Canada costs 40 euros. [1]"


def test_the_questions_of_a_mail_count() -> None:
    """In a long prompt, the words around the question do not decide."""
    mail = (
        "Hello all, I hope that you are well. Peter from the warehouse told me about the piano. "
        "The weather in the mountains was bad last week, and so we stayed in the kitchen. "
        "Within how many days can I return goods? Best regards, Ann"
    )
    assert quote_answer(mail, [POLICY, RULES]).startswith("You can return unopened goods within")


def test_headings_captions_and_questions_are_not_quoted() -> None:
    """What names a section is context of its sentences and no answer."""
    text = (
        "# Why is deleting slow?\n\n**(3) Deleting rows is really slow**\n\n"
        "Each statement waits for the disk. Group them."
    )
    assert quote_answer("Why is deleting rows slow?", [passage(text)]) == (
        "Each statement waits for the disk. [1] Group them. [1]"
    )


def test_a_sentence_in_the_other_language_is_quoted_if_only_it_has_the_subject() -> None:
    """A Japanese sentence without the name that a Japanese question asks about does not answer."""
    japanese = Passage(1, "d", "d.1", "T", "構文の使い方は説明書をご覧ください。")
    english = Passage(2, "d", "d.2", "T", "The visudo command edits the rules of sudo.")
    assert quote_answer("visudo の使い方", [japanese, english]) == (
        "The visudo command edits the rules of sudo. [2]"
    )


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        (
            "What does a hotel cost?",
            "A hotel costs 70 euros.",
            "A hotel costs 70 euros. [1] (as of 2025-03-01)",
        ),
        (
            "宿泊費はいくらですか",
            "宿泊費は9千円です。",
            "宿泊費は9千円です。[1]（2025-03-01 現在）",
        ),
    ],
)
def test_the_date_of_a_version_is_stated(question: str, text: str, answer: str) -> None:
    """An answer from one of several versions says as of when it holds."""
    passage = Passage(1, "d", "d.1", "Policy", text, date="2025-03-01")
    assert quote_answer(question, [passage]) == answer


def test_every_part_of_a_question_is_answered() -> None:
    """Questions joined by "and" are answered one after the other, each from its passage."""
    tea = Passage(1, "d", "d.1", "Tea", "The tea costs five euros. It is green.")
    bus = Passage(2, "e", "e.1", "Bus", "The bus stops at the harbour. It is red.")
    answer = quote_answer("How much does the tea cost, and where does the bus stop?", [tea, bus])
    assert answer == "The tea costs five euros. [1] The bus stops at the harbour. [2]"


def test_a_negative_question_is_answered_by_a_negation() -> None:
    """Of sentences with the same words, the one with a negation says what cannot be."""
    passage = Passage(1, "d", "d.1", "T", "- A column can be a key.\n- A column may not be empty.")
    assert quote_answer("What can't a column be?", [passage]) == "A column may not be empty. [1]"


def test_entries_of_a_table_of_contents_are_not_answers() -> None:
    """A sentence is preferred to an item without an end mark and an introduction."""
    text = "- Stopping the pump\n- Cleaning the pump\n\nTo stop the pump, turn the red lever."
    assert quote_answer("How do I stop the pump?", [Passage(1, "d", "d.1", "", text)]) == (
        "To stop the pump, turn the red lever. [1]"
    )


def test_the_section_about_a_term_defines_it() -> None:
    """The first sentences below a heading that is nothing but the term are preferred."""
    text = (
        "Set `queue_size` in the file. queue_size can be changed at run time.\n\n"
        "## queue_size\n\nMaximum number of waiting jobs."
    )
    assert quote_answer("queue_size", [Passage(1, "d", "d.1", "", text)]) == (
        "Maximum number of waiting jobs. [1]"
    )


def test_an_expansion_need_not_contain_the_abbreviation() -> None:
    """The words of an abbreviation answer what it stands for."""
    text = "WAL is the default. The write-ahead log is a file."
    assert "write-ahead log" in quote_answer(
        "What does WAL stand for?", [Passage(1, "d", "d.1", "", text)]
    )
