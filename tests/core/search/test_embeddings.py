"""Search by meaning: vectors are made in the background, kept by text, metered, and never needed."""

from typing import Any

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import vectors
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.chunker import hash_text
from service.core.ports import EmbeddingResult
from service.core.providers import embedders
from service.core.search.embeddings import EmbeddingStore
from service.core.search.service import SearchService
from service.core.settings import Settings
from tests.fakes.connection import letters

SETTINGS = Settings(_env_file=None)
TEXTS = [
    "The lighthouse keeper polishes the lens.",
    "Tea is picked by hand in May.",
    "The clock was built by Clara Winter.",
]


class Letters:
    """An embedder without a provider: vectors of letters."""

    model, at_once, metered = "letters", 2, False

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
        self.embedded += texts
        return EmbeddingResult([embedders._pack_floats(letters(text)) for text in texts], None)

    async def aclose(self) -> None:
        """Nothing to let go of."""


async def keep(database: Database, *texts: str, user_id: str = "u") -> list[str]:
    """Documents of one chunk each."""
    stored = await library.store_documents(
        database,
        SETTINGS,
        ChunkWorkers(),
        [library.NewDocument("", text, "utf-8") for text in texts],
        user_id=user_id,
    )
    return [document.document_id for document in stored]


async def fill(made: EmbeddingStore, most: int = 100) -> int:
    """Give `most` texts their vector."""
    n = 0
    while n < most and (texts := await made.list_missing("")):
        await made.embed_texts(texts[: most - n])
        n += len(texts[: most - n])
    return n


async def count(database: Database) -> int:
    """How many vectors there are."""
    async with database.read_session() as session:
        return int(
            (await session.execute(sa.select(sa.func.count()).select_from(vectors))).scalar_one()
        )


async def test_a_chunk_that_shares_no_term_is_found_by_meaning(database: Database) -> None:
    """The nearest chunks join the candidates."""
    await keep(database, *TEXTS)
    made = EmbeddingStore(database, Letters(), None, None)
    await fill(made)
    question = "sneb teh dnalb"  # letters of no text's words in order
    assert (
        await SearchService(database, SETTINGS).search(question, user_id="u", limit=5)
    ).items == []
    found = await SearchService(database, SETTINGS, made).search(question, user_id="u", limit=5)
    assert {hit.text for hit in found.items} == set(TEXTS)
    assert not found.answerable


async def test_everything_works_before_all_vectors_are_there(database: Database) -> None:
    """With none, one, two or all of the vectors, every question finds its text first."""
    await keep(database, *TEXTS)
    made = EmbeddingStore(database, Letters(), None, None)
    retrieval = SearchService(database, SETTINGS, made)
    for _ in range(4):
        for question, text in (
            ("lens of the lighthouse", TEXTS[0]),
            ("When is tea picked?", TEXTS[1]),
            ("Clara Winter", TEXTS[2]),
        ):
            assert (await retrieval.search(question, user_id="u", limit=5)).items[0].text == text
        await fill(made, 1)
    assert await made.read_progress() == (3, 3)


async def test_meaning_shows_nobody_elses_texts(database: Database) -> None:
    """Neighbours are those of the documents that the caller may see and has named."""
    mine = await keep(database, TEXTS[0], TEXTS[1])
    await keep(database, TEXTS[2], user_id="v")
    made = EmbeddingStore(database, Letters(), None, None)
    await fill(made)
    retrieval = SearchService(database, SETTINGS, made)
    found = await retrieval.search(TEXTS[2], user_id="u", limit=10)
    assert {hit.document_id for hit in found.items} == set(mine)
    found = await retrieval.search(TEXTS[2], user_id="u", limit=10, within=[mine[0]])
    assert {hit.document_id for hit in found.items} == {mine[0]}


async def test_many_nearer_texts_of_others_hide_no_neighbour(database: Database) -> None:
    """However many texts of others are nearer, one's own neighbours are found behind them."""
    await keep(database, *(f"Clara Winter, {n}" for n in range(60)), user_id="v")
    (mine,) = await keep(database, TEXTS[1])
    made = EmbeddingStore(database, Letters(), None, None)
    await fill(made)
    found = await SearchService(database, SETTINGS, made).search(
        "Clara Winter", user_id="u", limit=10
    )
    assert [hit.document_id for hit in found.items] == [mine]


async def test_a_text_is_embedded_once(database: Database) -> None:
    """The same text of two owners has one vector, a restart makes none, and cutting anew keeps it."""
    (document_id,) = await keep(database, TEXTS[0])
    await keep(database, TEXTS[0], user_id="v")
    embedder = Letters()
    await fill(EmbeddingStore(database, embedder, None, None))
    await library.reindex_document(database, SETTINGS, ChunkWorkers(), document_id)
    again = EmbeddingStore(database, embedder, None, None)
    await again.load_vectors()
    assert await fill(again) == 0
    assert embedder.embedded == [TEXTS[0]]
    nearness = await again.find_similar(TEXTS[0])
    assert nearness is not None
    assert list(nearness.get_cosines(nearness.find_nearest(10)).values()) == [
        pytest.approx(1, abs=1e-5)
    ]


async def test_a_deleted_documents_vectors_are_gone(database: Database) -> None:
    """The vector goes with the last document that has its text, and is found by nobody."""
    ids = await keep(database, TEXTS[0], TEXTS[1])
    (twin,) = await keep(database, TEXTS[0], user_id="v")
    made = EmbeddingStore(database, Letters(), None, None)
    await fill(made)
    await library.delete_document(database, ids[0], user_id="u")
    assert await count(database) == 2
    assert await made.delete_unused() == 0
    await library.delete_document(database, twin, user_id="v")
    assert await count(database) == 1
    assert await made.delete_unused() == 1
    nearness = await made.find_similar(TEXTS[0])
    assert nearness is not None
    assert nearness.find_nearest(10) == [hash_text(TEXTS[1])]
    found = await SearchService(database, SETTINGS, made).search(TEXTS[0], user_id=None, limit=10)
    assert [hit.document_id for hit in found.items] == [ids[1]]


async def test_a_vector_made_too_late_is_not_kept(database: Database) -> None:
    """A document deleted while its text was being embedded leaves no vector."""
    (document_id,) = await keep(database, TEXTS[0])
    made = EmbeddingStore(database, Letters(), None, None)
    texts = await made.list_missing("")
    await library.delete_document(database, document_id, user_id="u")
    await made.embed_texts(texts)
    assert await count(database) == 0
