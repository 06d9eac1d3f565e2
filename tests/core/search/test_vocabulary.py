"""The words of the chunks of a scope."""

from hypothesis import given
from hypothesis import strategies as st

from service.core.search.vocabulary import Vocabulary, list_written_words

TEXTS = ["the parcel office", "an office and a parcels desk", "office hours", "Bürokratie"]


def list_near(vocabulary: Vocabulary, word: str) -> list[tuple[str, str, int]]:
    """Return the words within two edits, in order."""
    return sorted(vocabulary.find_near(word, 2))


@given(st.lists(st.sets(st.integers(0, len(TEXTS) - 1)), min_size=1, max_size=6))
def test_a_vocabulary_depends_on_the_current_chunks_only(history: list[set[int]]) -> None:
    """After any additions and removals it equals a new one of the same chunks."""
    reads: list[int] = []

    def read(ids: list[int]) -> list[tuple[int, str, str, str]]:
        reads.extend(ids)
        return [(id_, "", TEXTS[id_], "") for id_ in ids]

    updated, new = Vocabulary(), Vocabulary()
    for ids in history:
        updated.update(ids, read)
    new.update(history[-1], read)
    for word in ("parcel", "office", "burokratie"):
        assert list_near(updated, word) == list_near(new, word)
        assert updated.count_chunks(word) == new.count_chunks(word)


def test_words_are_found_without_accents() -> None:
    """A word is compared without accents, and returned as it is written."""
    vocabulary = Vocabulary()
    vocabulary.update([1], lambda _: [(1, "Title", "Die BÜROKRATIE wächst.", "")])
    assert list_near(vocabulary, "burokratie") == [("burokratie", "bürokratie", 1)]


def test_identifiers_are_no_words() -> None:
    """Numbers, identifiers, short words and Japanese other than katakana are left out."""
    text = "abc worker_processes utf8mb4 Words 漢字 パスワード ひらがな"
    assert list_written_words(text) == {"words", "パスワード"}
