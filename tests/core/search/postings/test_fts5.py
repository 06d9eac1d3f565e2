"""Posting lists of FTS5: frequencies, weights and order."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search.postings.fts5 import Fts5Postings, IndexVersion
from service.core.search.ranking import parse_query
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer

T = TypeVar("T")
TEXTS = (
    "A lantern.",
    "A lantern in the old tower.",
    "A lantern, and one more lantern.",
    "An old harbour.",
)


@pytest.fixture
async def indexed(database: Database) -> Database:
    """A database with one chunk per text, with ids from 1 on."""
    given = [library.NewDocument("T", text, "utf-8") for text in TEXTS]
    await library.store_documents(
        database, Settings(_env_file=None), ChunkWorkers(), given, user_id="u"
    )
    return database


async def read(
    database: Database,
    question: str,
    read_postings: Callable[[Fts5Postings], T],
    version: IndexVersion | None = None,
) -> T:
    """Read from the posting lists of a query."""
    query = parse_query(question, get_tokenizer("auto"))

    def run(connection: sa.Connection) -> T:
        execute = connection.connection.cursor().execute
        return read_postings(Fts5Postings(execute, version or IndexVersion(1), query))

    return await database.run_blocking_read(run)


async def test_frequencies_count_chunks(indexed: Database) -> None:
    """The document frequency of a term is the number of chunks that contain it, or 0."""
    frequencies = await read(indexed, "lantern tower otter", Fts5Postings.read_frequencies)

    assert {term: n for (column, term), n in frequencies.items() if column == "words"} == {
        "lantern": 3,
        "tower": 1,
        "otter": 0,
    }


async def test_postings_have_the_weight_of_their_term(indexed: Database) -> None:
    """Each posting has the weight of its term, one term after the other."""
    weights = {("words", "tower"): 2.5, ("words", "lantern"): 0.5}
    ids, repeated = await read(
        indexed, "lantern tower", lambda postings: postings.read_weighted(weights)
    )

    assert list(zip(ids.tolist(), repeated.tolist(), strict=True)) == [
        (2, 2.5),
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
    ]


async def test_matches_are_ordered_by_bm25(indexed: Database) -> None:
    """More occurrences and shorter chunks come first, up to the limit."""
    ordered = await read(
        indexed, "lantern", lambda postings: postings.find_matches(["lantern"], None)
    )

    assert ordered == [3, 1, 2]
    assert await read(
        indexed, "lantern", lambda postings: postings.find_matches(["lantern"], 2)
    ) == [
        3,
        1,
    ]


async def test_operators_are_terms(indexed: Database) -> None:
    """Query syntax of FTS5 is read as terms."""
    assert (
        await read(
            indexed,
            'lantern" OR NEAR(* ^',
            lambda postings: postings.find_matches(["or", "near"], None),
        )
        == []
    )


async def test_frequencies_are_cached_by_version(indexed: Database) -> None:
    """Frequencies of a version come from its cache, even if the index has changed."""
    version = IndexVersion(1)
    before = await read(indexed, "harbour", Fts5Postings.read_frequencies, version)
    await library.store_documents(
        indexed,
        Settings(_env_file=None),
        ChunkWorkers(),
        [library.NewDocument("T", "A harbour.", "utf-8")],
        user_id="u",
    )

    assert await read(indexed, "harbour", Fts5Postings.read_frequencies, version) == before
    assert await read(indexed, "harbour", Fts5Postings.read_frequencies) != before
