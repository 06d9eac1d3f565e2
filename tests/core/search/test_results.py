"""The sentence of a chunk that matches a question best."""

from service.core.search.results import find_best_sentence


def test_inflected_words_match_their_sentence() -> None:
    """A dictionary form matches its inflection; a hiragana word matches itself."""
    text = "## 防災\n\n火災報知器が鳴ったら外に出ます。さくらの下に集まります。"
    assert [text[slice(*find_best_sentence(text, {term: 1.0}))] for term in ("鳴る", "さくら")] == [
        "火災報知器が鳴ったら外に出ます。",
        "さくらの下に集まります。",
    ]
