"""Recognition of languages."""

import pytest

from service.core.text.languages import recognize_language, recognize_part


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How long does shipping take?", "en"),
        ("返品の期限は何日ですか", "ja"),
        ("Wi-Fiは？", "ja"),
        ("東京都知事選挙", "ja"),
        ("怎么退货?", "zh"),
        ("如何配置反向代理", "zh"),
        ("프로세스를 종료하려면?", "ko"),
        ("Wie lösche ich einen Benutzer?", "de"),
        ("Comment supprimer un utilisateur ?", "fr"),
        ("¿Cómo instalo el paquete?", "es"),
        ("Come aggiungo un utente a un gruppo?", "it"),
        ("Como remover um utilizador do sistema?", "pt"),
        ("Hoe verwijder ik een gebruiker?", "nl"),
        ("git rebase", None),
        ("", None),
        ("Who edited Tesla's autobiography?", None),
        ("What does Eck's café sell?", "en"),
        ("What does the sign 返品 on the door of the shop mean?", "en"),
    ],
)
def test_questions(text: str, language: str | None) -> None:
    """A question is recognized by its script, or by its most frequent words and its letters."""
    assert recognize_language(text) == language


def test_a_part_without_evidence_has_the_language_of_the_whole() -> None:
    """Code, names and characters that Chinese and Japanese share do not decide."""
    assert recognize_part("passwd -l", "de") == "de"
    assert recognize_part("用户密码", "zh") == "zh"
    assert recognize_part("This is the end of it.", "de") == "en"
    assert recognize_part("返品の期限", "zh") == "ja"
