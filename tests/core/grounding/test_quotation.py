"""Quotations: the sentence that answers with what is needed to understand it."""

from service.core.grounding.citations import read_citations
from service.core.grounding.extraction import quote_answer
from service.core.grounding.quotation import (
    CODE_CHARACTERS_MAX,
    QUOTE_CHARACTERS_MAX,
    allot_characters,
)
from service.core.records import Passage


def quote(question: str, text: str, title: str = "Guide") -> str:
    """The answer from one passage."""
    return quote_answer(question, [Passage(1, "d", "d.1", title, text)])


def test_neighbours_of_the_same_paragraph_are_quoted() -> None:
    """The citation follows the best sentence, which becomes the sentence of the source."""
    text = (
        "Another paragraph.\n\nThe cables met in the harbour. That day Europe and America were "
        "connected for the first time. Bells rang in all towns. Nobody slept."
    )
    question = "Where were Europe and America connected?"
    answer = quote(question, text)
    assert answer == (
        "The cables met in the harbour. That day Europe and America were connected for the first "
        "time. [1] Bells rang in all towns. Nobody slept. [1]"
    )
    (source,) = read_citations(answer, [Passage(1, "d", "d.1", "", text)], question).sources
    assert source.text[slice(*source.sentence or ())].startswith("That day Europe")


def test_a_sentence_that_answers_alone_is_quoted_alone() -> None:
    """Neighbours that do not continue a decisive sentence are left out."""
    text = "Tea costs 5 euros. Delivery takes three days. {} The shop is old."
    question = "How long does delivery take?"
    assert quote(question, text.format("Parking is free.")) == "Delivery takes three days. [1]"
    assert quote(question, text.format("However, to islands it takes ten.")) == (
        "Delivery takes three days. [1] However, to islands it takes ten. [1]"
    )


def test_unrelated_neighbours_of_an_answer_are_left_out() -> None:
    """If the best sentence has what is asked for, neighbours must share a word with it."""
    text = "Bikes stand below. Dogs are welcome on Fridays. Rooms are small."
    assert quote("Can I bring my dog?", text) == "Dogs are welcome on Fridays. [1]"
    text = "部屋は狭い。犬は金曜日に歓迎します。犬は静かに。"
    assert quote("犬は歓迎されますか", text) == "犬は金曜日に歓迎します。[1]犬は静かに。[1]"


def test_the_length_is_limited() -> None:
    """Neighbours that make a quotation too long are left out."""
    long = "Word " * (QUOTE_CHARACTERS_MAX // 5) + "end."
    assert quote("Who painted the lamps?", f"{long} The lamps were painted. {long}") == (
        "The lamps were painted. [1]"
    )


def test_a_long_sentence_is_shortened() -> None:
    """The part with the words of the question is quoted."""
    clauses = ", ".join(f"room {n} has a bed and a chair of oak" for n in range(30))
    answer = quote("What does the keeper polish?", f"In the tower, {clauses}, the keeper polishes.")
    assert answer.startswith("… room")
    assert answer.endswith("the keeper polishes. [1]")
    assert QUOTE_CHARACTERS_MAX - 60 < len(answer) <= QUOTE_CHARACTERS_MAX


def test_quotations_share_the_length() -> None:
    """Two places together are no longer than one; a short sentence is not shortened."""
    assert allot_characters([100]) == [400]
    assert allot_characters([350, 50]) == [338, 62]
    assert allot_characters([300, 300, 300]) == [133, 133, 134]
    text = "\n\n".join(
        f"The {room} opens at {hour} on all days, " + "and its keys are at the desk, " * 20
        for room, hour in (("library", "nine"), ("museum", "ten"))
    )
    answer = quote("When does the library open, and when does the museum open?", text)
    assert "library opens at nine" in answer
    assert "museum opens at ten" in answer
    assert len(answer) <= QUOTE_CHARACTERS_MAX


def test_the_sentence_before_a_continuation_comes_first() -> None:
    """If the best sentence refers to the one before, that one is quoted rather than the next."""
    text = f"Anna painted the lamps. She also built the organ. {'It has pipes of tin ' * 18}."
    answer = quote("Who built the organ?", text)
    assert answer == "Anna painted the lamps. She also built the organ. [1]"


def test_sentences_after_a_complete_one_are_left_out() -> None:
    """A sentence that covers the question needs none after it, unless they are linked."""
    text = "The lamp of the tower was made in Paris by Henry Lepaute. {} the tower."
    question = "Who made the lamp of the tower?"
    assert quote(question, text.format("Visitors like")) == (
        "The lamp of the tower was made in Paris by Henry Lepaute. [1]"
    )
    assert "However" in quote(question, text.format("However, it never reached"))


def test_fragments_are_no_neighbours() -> None:
    """A line without an end mark, or one that introduces what follows, is not quoted."""
    text = "鐘は毎朝鳴ります。鐘の理由は以下のとおりです。\n\n- 祭り。"
    assert quote("鐘はいつ鳴りますか", text) == "鐘は毎朝鳴ります。[1]"


def test_a_row_is_quoted_with_its_header() -> None:
    """Cells have the names of their columns."""
    text = "| Size | Price |\n|---|---|\n| small | **10** euros |\n| large | 20 euros |\n"
    assert quote("What does the large one cost?", text) == "Size: large; Price: 20 euros [1]"


def test_a_list_is_quoted_with_its_introduction() -> None:
    """The introduction, or any item, brings the list; the best sentence is cited first."""
    text = "Modules have the following advantages:\n\n- Less memory.\n- Faster start.\n\nOther."
    assert quote("What are the advantages of modules?", text) == (
        "Modules have the following advantages: [1]\n- Less memory.\n- Faster start. [1]"
    )
    assert quote("Do modules need less memory?", text) == (
        "Modules have the following advantages:\n- Less memory. [1]\n- Faster start. [1]"
    )


def test_code_follows_the_sentence_that_introduces_it() -> None:
    """How to do something is answered with the command, as it stands."""
    text = "To renew the certificate, run:\n\n```sh\n# as root\nrenew --all\n```\n\nThen wait."
    assert quote("How do I renew the certificate?", text) == (
        "To renew the certificate, run: [1]\n\n```sh\n# as root\nrenew --all\n```\n[1]"
    )


def test_long_code_is_cut_at_a_line() -> None:
    """Code is quoted up to its limit, and its fence is closed."""
    lines = "".join(f"step {n} of the renewal\n" for n in range(100))
    answer = quote("How do I renew it?", f"Renew it so:\n\n```\n{lines}```\n")
    assert len(answer) < CODE_CHARACTERS_MAX + 200
    assert answer.endswith("of the renewal\n```\n[1]")


def test_the_subject_is_restored() -> None:
    """The heading, or else the title, precedes a quotation that begins with a pronoun."""
    text = "It has a population of 900,000, which is falling."
    question = "Is the population falling?"
    assert quote(question, text, "Wakayama").startswith("Wakayama: It has")
    assert quote(question, f"# 3.1 The city\n\n{text}", "x.md").startswith("The city: It has")
    assert quote(question, text, "notes_2.md").startswith("It has")
    assert quote("人口は減っていますか", "この県の人口は減っている。", "和歌山県").startswith(
        "和歌山県：この県"
    )


def test_code_after_the_answer_is_quoted() -> None:
    """How to do something includes the command in the block after the next sentence."""
    code = "```\nkeygen -t rsa\n```"
    text = f"Create a key for the server first. It is a pair of files.\n\n{code}\n\nEnd."
    answer = quote("How do I create a key for the server?", text)
    assert answer == (
        f"Create a key for the server first. [1] It is a pair of files.\n\n{code}\n[1]"
    )
    assert "keygen" not in quote("Is the key for the server a pair?", text)


def test_a_heading_that_answers_is_quoted() -> None:
    """The date in the heading of a list of changes precedes the sentence below it."""
    text = "### 2022-09-05 (version 3.39)\n\nThe cache is released at once.\n\n### Next\n\nMore."
    assert quote("When was version 3.39 released?", text) == (
        "2022-09-05 (version 3.39): The cache is released at once. [1]"
    )
    assert quote("What is released at once?", text) == "The cache is released at once. [1]"
