"""Semantic search: vectors are stored by text, computed in the background, and optional."""

from contextlib import aclosing
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
from tests.fakes.connection import count_letters

SETTINGS = Settings(_env_file=None)
TEXTS = [
    "The lighthouse keeper polishes the lens.",
    "Tea is picked by hand in May.",
    "The clock was built by Clara Winter.",
]


class Letters:
    """An embedder without a provider: letter frequencies."""

    model, at_once, metered = "letters", 2, False

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
        self.embedded += texts
        return EmbeddingResult(
            [embedders._pack_floats(count_letters(text)) for text in texts], None
        )

    async def aclose(self) -> None:
        """Do nothing."""


async def store_texts(database: Database, *texts: str, user_id: str = "u") -> list[str]:
    """Store documents of one chunk each and return their ids."""
    stored = await library.store_documents(
        database,
        SETTINGS,
        ChunkWorkers(),
        [library.NewDocument("", text, "utf-8") for text in texts],
        user_id=user_id,
    )
    return [document.document_id for document in stored]


async def embed_missing(store: EmbeddingStore, texts_max: int = 100) -> int:
    """Embed up to `texts_max` texts and return their number."""
    n = 0
    async with aclosing(store.list_missing_batches()) as batches:
        async for texts in batches:
            await store.embed_texts(texts[: texts_max - n])
            n += len(texts[: texts_max - n])
            if n >= texts_max:
                break
    return n


async def count_vectors(database: Database) -> int:
    """Return the number of stored vectors."""
    async with database.read_session() as session:
        return int(
            (await session.execute(sa.select(sa.func.count()).select_from(vectors))).scalar_one()
        )


async def test_chunks_without_common_terms_are_found_by_meaning(database: Database) -> None:
    """The nearest chunks join the candidates."""
    await store_texts(database, *TEXTS)
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    question = "sneb teh dnalb"  # no word of a text
    assert (
        await SearchService(database, SETTINGS).search(question, user_id="u", limit=5)
    ).items == []
    results = await SearchService(database, SETTINGS, store).search(question, user_id="u", limit=5)
    assert {hit.text for hit in results.items} == set(TEXTS)
    assert not results.answerable


async def test_search_works_while_vectors_are_missing(database: Database) -> None:
    """With none, one, two or all of the vectors, each query ranks its text first."""
    await store_texts(database, *TEXTS)
    store = EmbeddingStore(database, Letters(), None, None)
    service = SearchService(database, SETTINGS, store)
    for _ in range(4):
        for question, text in (
            ("lens of the lighthouse", TEXTS[0]),
            ("When is tea picked?", TEXTS[1]),
            ("Clara Winter", TEXTS[2]),
        ):
            assert (await service.search(question, user_id="u", limit=5)).items[0].text == text
        await embed_missing(store, 1)
    assert await store.read_progress() == (3, 3)


async def test_nearest_texts_are_visible(database: Database) -> None:
    """The nearest texts are selected from visible documents and those in `within`."""
    own = await store_texts(database, TEXTS[0], TEXTS[1])
    await store_texts(database, TEXTS[2], user_id="v")
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    service = SearchService(database, SETTINGS, store)
    results = await service.search(TEXTS[2], user_id="u", limit=10)
    assert {hit.document_id for hit in results.items} == set(own)
    results = await service.search(TEXTS[2], user_id="u", limit=10, within=[own[0]])
    assert {hit.document_id for hit in results.items} == {own[0]}


async def test_nearer_texts_of_others_hide_nothing(database: Database) -> None:
    """The caller's texts are found, however many texts of others are nearer."""
    await store_texts(database, *(f"Clara Winter, {n}" for n in range(60)), user_id="v")
    (own,) = await store_texts(database, TEXTS[1])
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    results = await SearchService(database, SETTINGS, store).search(
        "Clara Winter", user_id="u", limit=10
    )
    assert [hit.document_id for hit in results.items] == [own]


async def test_a_text_is_embedded_once(database: Database) -> None:
    """Two owners of a text share a vector; a restart and re-indexing keep it."""
    (document_id,) = await store_texts(database, TEXTS[0])
    await store_texts(database, TEXTS[0], user_id="v")
    embedder = Letters()
    await embed_missing(EmbeddingStore(database, embedder, None, None))
    await library.reindex_document(database, SETTINGS, ChunkWorkers(), document_id)
    restarted = EmbeddingStore(database, embedder, None, None)
    await restarted.load_vectors()
    assert await embed_missing(restarted) == 0
    assert embedder.embedded == [TEXTS[0]]
    similarities = await restarted.find_similar(TEXTS[0])
    assert similarities is not None
    assert list(similarities.get_cosines(similarities.find_nearest(10)).values()) == [
        pytest.approx(1, abs=1e-5)
    ]


async def test_vectors_are_deleted_with_the_last_document(database: Database) -> None:
    """A vector is deleted with the last document that contains its text."""
    ids = await store_texts(database, TEXTS[0], TEXTS[1])
    (twin,) = await store_texts(database, TEXTS[0], user_id="v")
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    await library.delete_document(database, ids[0], user_id="u")
    assert await count_vectors(database) == 2
    assert await store.delete_unused() == 0
    await library.delete_document(database, twin, user_id="v")
    assert await count_vectors(database) == 1
    assert await store.delete_unused() == 1
    similarities = await store.find_similar(TEXTS[0])
    assert similarities is not None
    assert similarities.find_nearest(10) == [hash_text(TEXTS[1])]
    results = await SearchService(database, SETTINGS, store).search(
        TEXTS[0], user_id=None, limit=10
    )
    assert [hit.document_id for hit in results.items] == [ids[1]]


async def test_vectors_of_deleted_texts_are_not_stored(database: Database) -> None:
    """A document deleted while its text is embedded leaves no vector."""
    (document_id,) = await store_texts(database, TEXTS[0])
    store = EmbeddingStore(database, Letters(), None, None)
    async with aclosing(store.list_missing_batches()) as batches:
        texts = await anext(batches)
    await library.delete_document(database, document_id, user_id="u")
    await store.embed_texts(texts)
    assert await count_vectors(database) == 0


async def test_owners_take_turns_at_the_back_fill(database: Database) -> None:
    """A document waits for one batch of each other owner, also if it is added meanwhile."""
    long = "".join(f"# Part {n}\n\n{TEXTS[n % 3]} {'word ' * 100}{n}.\n\n" for n in range(30))
    (longest,) = await store_texts(database, long, user_id="a")
    await store_texts(database, TEXTS[0], TEXTS[1], TEXTS[2], user_id="b")
    embedder = Letters()
    store = EmbeddingStore(database, embedder, None, None)
    owners: list[str] = []
    async with aclosing(store.list_missing_batches()) as batches:
        async for texts in batches:
            await store.embed_texts(texts)
            owners.append("a" if "word" in texts[0].text else "b" if len(owners) < 4 else "c")
            if len(owners) == 4:
                await store_texts(database, "Apples are red.", user_id="c")
    async with database.read_session() as session:
        document = await library.get_document(session, longest, user_id="a")

    assert document.chunks >= 12
    assert owners[:6] == ["a", "b", "a", "b", "a", "c"]
    assert set(owners[6:]) == {"a"}
    assert len(embedder.embedded) == len(set(embedder.embedded)) == document.chunks + 4
