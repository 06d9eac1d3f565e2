"""Stems of several languages."""

from service.core.text.stemming import stem_word


def test_forms_of_a_word_have_one_stem() -> None:
    """Words are stemmed with their accents; German umlauts may be written with e."""
    assert stem_word("refunded") == stem_word("refunds")
    assert stem_word("löschen", "de") == stem_word("loeschen", "de")
    assert stem_word("supprimé", "fr") == stem_word("supprimer", "fr")
