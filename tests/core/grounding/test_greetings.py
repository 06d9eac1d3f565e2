"""Greetings in further languages."""

import pytest

from service.core.grounding.greetings import find_greeting_language
from service.core.grounding.refusals import fold_prompt


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("Guten Morgen!", "de"),
        ("Merci beaucoup", "fr"),
        ("¡Muchas gracias!", "es"),
        ("Arrivederci", "it"),
        ("Obrigada!", "pt"),
        ("Dank je wel", "nl"),
        ("谢谢你！", "zh"),
        ("감사합니다", "ko"),
        ("Hello", None),
        ("Danke, und wie lange dauert es?", None),
    ],
)
def test_greetings_have_a_language(prompt: str, language: str | None) -> None:
    """A whole prompt that greets, thanks or takes leave has a language; others have none."""
    assert find_greeting_language(fold_prompt(prompt)) == language
