"""Shortening of long sentences."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.grounding.shortening import ELLIPSIS, shorten_sentence


def test_the_heaviest_clauses_are_kept() -> None:
    """They begin and end between clauses; an ellipsis stands for the rest."""
    text = "The hall was built in 1820, the lamp burns whale oil, and the keeper sleeps upstairs."
    assert shorten_sentence(text, 45, lambda part: part.count("lamp")) == (
        "… the lamp burns whale oil …"
    )
    assert shorten_sentence(text, 100, len) == text
    japanese = "灯台は1820年に建てられ、灯火には鯨油が使われており、番人は二階で眠っている。"
    assert shorten_sentence(japanese, 24, lambda part: part.count("鯨油")) == (
        "…灯火には鯨油が使われており…"
    )


@given(st.text("ab ,、灯（", min_size=1, max_size=300), st.integers(20, 120))
def test_the_length_is_never_exceeded(text: str, characters_max: int) -> None:
    """What is left is a part of the sentence, whatever it consists of."""
    shortened = shorten_sentence(text, characters_max, lambda part: part.count("a"))
    assert len(shortened) <= characters_max
    assert shortened.strip(f"{ELLIPSIS} ").strip(",、 ") in text
