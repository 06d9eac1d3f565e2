"""Documents to rows of chunks: offsets, titles, headings."""

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
    """The index knows a chunk by the heading of its section, and the chunk's text stays a slice of the document."""
    text = (
        "# Guide\n\n## Snorkelling\n\n"
        + " ".join(f"Fish number {i} swims by." for i in range(150))
        + "\n\n## Hiking\n\nUp."
    )
    document, _ = await keep(database, text)
    async with database.read_session() as session:
        known = (
            (await session.execute(sa.select(chunks.c.words).order_by(chunks.c.n))).scalars().all()
        )
    assert document.chunks > 3
    assert all("snorkel" in words.split(" ") for words in known[:-1])
    assert "hike" in known[-1].split(" ")


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
    """Whatever the text, a chunk's offsets slice the original, and the best sentence's offsets slice the chunk."""
    small = Settings(_env_file=None, chunk_characters=50)
    for piece in chunk_document({"id": "d", "title": "T", "text": text}, small):
        assert piece["text"] == text[piece["start"] : piece["end"]]
        low, high = find_best_sentence(piece["text"], {"灯台": 1.0, "a": 2.0})
        assert 0 <= low < high <= len(piece["text"])


def known_by(text: str, title: str = "") -> list[list[str]]:
    """The words by which the index knows each chunk of a text."""
    small = Settings(_env_file=None, chunk_characters=60, chunk_overlap_characters=0)
    return [
        piece["words"].split()
        for piece in chunk_document(
            {"id": "d", "title": title or derive_title(text), "text": text}, small
        )
    ]


def test_a_chunk_is_known_by_its_title_once() -> None:
    """A title that was given stands above every chunk; the first line of the text is in the first one already."""
    rest = "\n\n" + "They sleep in kelp, and hold hands while they do. " * 5
    assert [words.count("otter") for words in known_by(rest, "Otters")] == [1] * len(known_by(rest))
    assert [words.count("otter") for words in known_by("# Otters" + rest)] == [1] * len(
        known_by(rest)
    )
    assert len(known_by(rest)) > 1


def test_a_paragraph_is_no_title() -> None:
    """Of a text that begins with one the other chunks are not about it."""
    found = known_by(
        "Zebras graze. " * 9 + "\n\n" + "Otters sleep in kelp, and hold hands while they do. " * 5
    )
    assert found[0].count("zebra") > 1
    assert "zebra" not in found[-1]
