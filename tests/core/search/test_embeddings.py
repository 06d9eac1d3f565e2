"""Semantic search: vectors are stored by text, computed in the background, and optional."""

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import documents, vectors
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.library import NewDocument
from service.core.errors import ProviderInvalid
from service.core.ports import EmbeddingResult
from service.core.providers import embedders
from service.core.search import languages
from service.core.search.embeddings import (
    COMPARED_CHARACTERS_MAX,
    COMPARED_TEXTS_MAX,
    EmbeddingStore,
    MissingText,
    ScopeProgress,
)
from service.core.search.service import SearchService
from service.core.settings import Settings
from tests.fakes.connection import count_letters

pytestmark = pytest.mark.every_database

SETTINGS = Settings(_env_file=None)
TEXTS = [
    "The lighthouse keeper polishes the lens.",
    "Tea is picked by hand in May.",
    "The clock was built by Clara Winter.",
]


class Letters:
    """An embedder without a provider: letter frequencies."""

    model, at_once = "letters", 2
    provider, provider_model = "default", "letters"
    metered = False

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.width = 65

    async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
        self.embedded += texts
        return EmbeddingResult(
            [embedders._pack_floats(count_letters(text)[: self.width]) for text in texts], None
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
    async with aclosing(store.list_missing(await store.read_progress())) as batches:
        async for texts in batches:
            part = texts[: texts_max - n]
            await store.embed_texts(part)
            n += len(part)
            if n == texts_max:
                break
    await store.publish_vectors()
    return n


async def read_texts(store: EmbeddingStore) -> list[list[MissingText]]:
    """Return the batches of missing texts."""
    return [texts async for texts in store.list_missing(await store.read_progress())]


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
    assert await store.read_progress() == [ScopeProgress(1, 3, 3)]


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


async def test_a_text_is_embedded_once_per_owner(database: Database) -> None:
    """Two documents of an owner share a vector; a restart and re-indexing keep it."""
    ids = await store_texts(database, TEXTS[0])
    await library.store_documents(
        database, SETTINGS, ChunkWorkers(), [NewDocument("", TEXTS[0] + " ", "utf-8")], user_id="u"
    )
    embedder = Letters()
    await embed_missing(EmbeddingStore(database, embedder, None, None))
    await library.reindex_document(database, SETTINGS, ChunkWorkers(), ids[0])
    restarted = EmbeddingStore(database, embedder, None, None)
    assert await embed_missing(restarted) == 0
    assert embedder.embedded == [TEXTS[0]]
    results = await SearchService(database, SETTINGS, restarted).search(
        TEXTS[0], user_id="u", limit=5
    )
    assert [hit.cosine for hit in results.items] == [pytest.approx(1, abs=1e-4)] * 2


async def test_vectors_of_others_are_not_used(database: Database) -> None:
    """A text has no vector until its owner's copy is embedded, although another owner's has one."""
    await store_texts(database, TEXTS[0], user_id="v")
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    await store_texts(database, TEXTS[0])
    service = SearchService(database, SETTINGS, store)

    async def list_cosines() -> list[Any]:
        return [hit.cosine for hit in (await service.search(TEXTS[0], user_id="u", limit=5)).items]

    assert await list_cosines() == [msgspec.UNSET]
    assert await embed_missing(store) == 1
    assert await list_cosines() == [pytest.approx(1, abs=1e-4)]


async def test_owners_take_turns(database: Database) -> None:
    """Each batch has texts of one owner, and many texts of one do not delay the others."""
    await store_texts(database, *(f"Clara Winter, {n}" for n in range(5)), user_id="v")
    await store_texts(database, TEXTS[0])
    store = EmbeddingStore(database, Letters(), None, None)
    batches = await read_texts(store)
    assert [{text.scope for text in texts} for texts in batches] == [{1}, {2}, {1}, {1}]
    assert sum(len(texts) for texts in batches) == 6


async def test_texts_of_a_new_owner_do_not_wait_for_the_end(database: Database) -> None:
    """A text that is added during the back-fill of another owner waits for one batch of theirs."""
    await store_texts(database, *(f"Text {n} of one owner." for n in range(8)), user_id="a")
    store = EmbeddingStore(database, Letters(), None, None)
    order = []
    async with aclosing(store.list_missing(await store.read_progress())) as batches:
        async for texts in batches:
            await store.embed_texts(texts)
            order.append("one" in texts[0].text)
            if len(order) == 1:
                await store_texts(database, "Apples are red.", user_id="b")

    assert order == [True, True, False, True, True]


async def test_a_vector_follows_a_shared_document(database: Database) -> None:
    """Sharing a document and ending it move its vector, unless another document needs it."""
    ids = await store_texts(database, TEXTS[0], TEXTS[1])
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    service = SearchService(database, SETTINGS, store)
    for shared in (True, False):
        async with database.transaction() as session:
            change = sa.update(documents).where(documents.c.id == ids[0]).values(shared=shared)
            await session.execute(change)
        assert await count_vectors(database) == 2
        assert await store.read_progress() == [
            *([ScopeProgress(0, 1, 1)] if shared else []),
            ScopeProgress(1, 1 if shared else 2, 1 if shared else 2),
        ]
        for user_id in ("u", "v"):
            results = await service.search(TEXTS[0], user_id=user_id, limit=1)
            assert [hit.cosine for hit in results.items] == (
                [pytest.approx(1, abs=1e-4)] if shared or user_id == "u" else []
            )


async def test_vectors_are_deleted_with_the_last_document(database: Database) -> None:
    """A vector is deleted with the last document of the owner that contains its text."""
    ids = await store_texts(database, TEXTS[0], TEXTS[1])
    (twin,) = await store_texts(database, TEXTS[0], user_id="v")
    store = EmbeddingStore(database, Letters(), None, None)
    await embed_missing(store)
    assert await count_vectors(database) == 3
    await library.delete_document(database, ids[0], user_id="u")
    assert await count_vectors(database) == 2
    await library.delete_document(database, twin, user_id="v")
    assert await count_vectors(database) == 1
    results = await SearchService(database, SETTINGS, store).search(
        TEXTS[0], user_id=None, limit=10
    )
    assert [hit.document_id for hit in results.items] == [ids[1]]


async def test_vectors_of_deleted_texts_are_not_stored(database: Database) -> None:
    """A document deleted while its text is embedded leaves no vector."""
    (document_id,) = await store_texts(database, TEXTS[0])
    store = EmbeddingStore(database, Letters(), None, None)
    (texts,) = await read_texts(store)
    await library.delete_document(database, document_id, user_id="u")
    await store.embed_texts(texts)
    assert await count_vectors(database) == 0


async def test_vectors_of_another_length_are_ignored(database: Database) -> None:
    """After a change of the embedder's dimensions, the old vectors take no part."""
    await store_texts(database, TEXTS[0])
    embedder = Letters()
    await embed_missing(EmbeddingStore(database, embedder, None, None))
    embedder.width = 20
    results = await SearchService(
        database, SETTINGS, EmbeddingStore(database, embedder, None, None)
    ).search(TEXTS[0], user_id="u", limit=5)
    assert [hit.cosine for hit in results.items] == [msgspec.UNSET]


class SlowLetters(Letters):
    """An embedder that never finishes the fourth text."""

    async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
        result = await super().embed(texts, query=query)
        if len(self.embedded) > 4:  # after the question
            await asyncio.Event().wait()
        return result


async def test_sentences_are_compared_in_time(database: Database) -> None:
    """The similarities that were computed in time are returned; nothing is stored."""
    store = EmbeddingStore(database, SlowLetters(), None, None, compare_seconds=0.05)
    similarities = await store.compare_texts(TEXTS[1], [*TEXTS, "Never compared."])
    assert len(similarities) == 3
    assert max(similarities) == similarities[1] == pytest.approx(1)
    assert await count_vectors(database) == 0


async def test_a_bounded_part_of_sentences_is_embedded(database: Database) -> None:
    """Only the first sentences are embedded, and only the beginning of each."""
    letters = Letters()
    store = EmbeddingStore(database, letters, None, None)
    similarities = await store.compare_texts("Who?", ["x" * 10_000] * 100)
    assert len(similarities) == COMPARED_TEXTS_MAX
    assert max(map(len, letters.embedded)) == COMPARED_CHARACTERS_MAX


async def test_sentences_are_not_sent_to_a_provider(database: Database) -> None:
    """Sentences are compared by a model in this process only: no call that may be billed."""
    letters = Letters()
    letters.metered = True
    store = EmbeddingStore(database, letters, None, None)
    assert await store.compare_texts("Who?", TEXTS) == []
    assert letters.embedded == []


async def test_failing_comparisons_return_what_they_have(database: Database) -> None:
    """An error of the model ends the comparison without an exception."""

    class Failing(Letters):
        async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
            if len(self.embedded) == 2:
                raise ProviderInvalid("broken")
            return await super().embed(texts, query=query)

    store = EmbeddingStore(database, Failing(), None, None)
    assert len(await store.compare_texts("Who?", TEXTS)) == 1


class MultilingualLetters(Letters):
    """An embedder with the name and the length of vectors of the model that has language means."""

    model = languages.MODEL

    async def embed(self, texts: Any, *, query: bool) -> EmbeddingResult:
        result = await super().embed(texts, query=query)
        empty = bytes(4 * (384 - self.width))
        return EmbeddingResult([vector + empty for vector in result.vectors], None)


async def test_pages_of_others_in_other_languages_change_nothing(database: Database) -> None:
    """Comparisons across languages use the languages of the caller's documents only."""
    await store_texts(
        database,
        *TEXTS,
        "Der Leuchtturmwärter putzt die Linse, und sie ist sehr groß.",
        "灯台守はレンズを磨きます。",
    )
    store = EmbeddingStore(database, MultilingualLetters(), None, None)
    service = SearchService(database, SETTINGS, store)
    questions = [
        "Who polishes the lens?",
        "Wer putzt die Linse und was ist das?",
        "レンズを磨くのは誰ですか",
        "谁擦灯塔的镜头?",
    ]

    async def search_all() -> list[bytes]:
        await embed_missing(store)
        return [
            msgspec.json.encode(await service.search(question, user_id="u", limit=20))
            for question in questions
        ]

    before = await search_all()
    others = [
        "Die Uhr ist von Clara Winter und sie steht im Turm.",
        "时钟是克拉拉造的吗?",
        "L'orologio è di Clara, che non lo usa più.",
    ]
    for text in others:
        await store_texts(database, text, user_id="v")
        assert await search_all() == before
