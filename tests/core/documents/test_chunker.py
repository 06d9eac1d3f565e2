"""Chunk rows of documents: offsets, titles, headings."""

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.database.engine import Database
from service.core.database.tables import chunks
from service.core.documents.chunker import chunk_document
from service.core.search.results import find_best_sentence
from service.core.settings import Settings
from service.core.text.chunking import derive_title
from tests.core.documents.test_library import keep


async def test_a_chunk_is_found_by_the_heading_above_it(database: Database) -> None:
    """The heading of its section is indexed with a chunk without becoming part of its text."""
    text = (
        "# Guide\n\n## Snorkelling\n\n"
        + " ".join(f"Fish number {i} swims by." for i in range(150))
        + "\n\n## Hiking\n\nUp."
    )
    document, _ = await keep(database, text)
    async with database.read_session() as session:
        words_by_chunk = (
            (await session.execute(sa.select(chunks.c.words).order_by(chunks.c.n))).scalars().all()
        )
    assert document.chunks > 3
    assert all("snorkel" in words.split(" ") for words in words_by_chunk[:-1])
    assert "hike" in words_by_chunk[-1].split(" ")


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    text=st.text(
        st.sampled_from("灯台の。、!?. \n#-「」aZ9é👩\u202e")
        | st.characters(codec="utf-8", exclude_characters="\0"),
        min_size=1,
        max_size=1500,
    )
)
def test_every_chunk_is_a_slice_of_its_document(database: Database, text: str) -> None:
    """Offsets of chunks and of best sentences are valid for any text."""
    small = Settings(_env_file=None, chunk_characters=50)
    for piece in chunk_document({"id": "d", "title": "T", "text": text}, small):
        assert piece["text"] == text[piece["start"] : piece["end"]]
        low, high = find_best_sentence(piece["text"], {"灯台": 1.0, "a": 2.0})
        assert 0 <= low < high <= len(piece["text"])


def index_words(text: str, title: str = "") -> list[list[str]]:
    """The indexed words of each chunk of a text."""
    small = Settings(_env_file=None, chunk_characters=60, chunk_overlap_characters=0)
    return [
        piece["words"].split()
        for piece in chunk_document(
            {"id": "d", "title": title or derive_title(text), "text": text}, small
        )
    ]


def test_a_chunk_is_indexed_by_its_title_once() -> None:
    """A title is indexed with every chunk, except with a first chunk that already contains it."""
    rest = "\n\n" + "They sleep in kelp, and hold hands while they do. " * 5
    assert [words.count("otter") for words in index_words(rest, "Otters")] == [1] * len(
        index_words(rest)
    )
    assert [words.count("otter") for words in index_words("# Otters" + rest)] == [1] * len(
        index_words(rest)
    )
    assert len(index_words(rest)) > 1


def test_a_first_paragraph_is_not_a_title() -> None:
    """A long first line is not indexed with the other chunks."""
    words = index_words(
        "Zebras graze. " * 9 + "\n\n" + "Otters sleep in kelp, and hold hands while they do. " * 5
    )
    assert words[0].count("zebra") > 1
    assert "zebra" not in words[-1]
