"""The index: candidates per visibility, deleted documents, replaced database files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.database.engine import Database
from service.core.database.tables import documents
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search.index import CANDIDATES_MAX, VISIBLE_AT_ONCE, SearchIndex, Visibility
from service.core.search.ranking import parse_query
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer
from tests.core.search.test_service import search, store_text

pytestmark = pytest.mark.every_database

SETTINGS = Settings(_env_file=None)
OWN, ALL = Visibility("u", None), Visibility(None, None)


async def test_a_deleted_document_leaves_no_ghost(database: Database) -> None:
    """After a deletion neither words nor grams nor counts of the document are left."""
    deleted = await store_text(database, "灯台の管理人は毎朝レンズを磨きます。")
    kept_id = await store_text(database, "灯台の見学は無料です。")
    await library.delete_document(database, deleted, user_id="u")
    assert [hit.document_id for hit in (await search(database, "灯台のレンズの管理人")).items] == [
        kept_id
    ]
    query = parse_query("灯台 管理人 レンズ", get_tokenizer("auto"))
    counts = await database.run_blocking_read(
        lambda connection: SearchIndex().open_snapshot(connection, OWN).read_statistics(query)
    )
    assert (counts.chunks, {word: n for word, n in counts.words.items() if n}) == (1, {"灯台": 1})
    assert {gram: n for gram, n in counts.grams.items() if n} == {"灯台": 1}


async def test_a_frequent_word_matches_where_it_is_densest(
    database: Database,
) -> None:
    """If more chunks than candidates contain the only word, the best by BM25 are candidates."""
    filler = "A note about harbours, ropes, sails, anchors, tides, cranes, fog, nets and boats"
    new = [
        library.NewDocument("T", f"{filler} with a lantern, number {n}.", "utf-8")
        for n in range(CANDIDATES_MAX + 20)
    ]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), new, user_id="u")
    best = await store_text(database, "Lantern by lantern.")
    results = await search(database, "lantern", limit=1)
    assert [hit.document_id for hit in results.items] == [best]


async def test_documents_of_others_take_no_places(
    database: Database,
) -> None:
    """Many better chunks of others do not displace the chunks that the caller may see."""
    new = [
        library.NewDocument("T", f"The lantern keeper trims lantern {n}.", "utf-8")
        for n in range(VISIBLE_AT_ONCE + 50)
    ]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), new, user_id="other")
    mine = await store_text(
        database, "A lantern, and much else about harbours, ropes, sails, anchors, tides and fog."
    )
    assert [hit.document_id for hit in (await search(database, "lantern keeper")).items] == [mine]
    assert [hit.document_id for hit in (await search(database, "lantern")).items] == [mine]


@settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=14))
async def test_changes_in_any_order_leave_no_ghost(
    database: Database, steps: list[tuple[bool, int]]
) -> None:
    """After each step a search returns the stored documents, with the counts of a fresh index."""
    service = SearchService(database, SETTINGS)  # shared: its caches must not outlive a change
    stored: dict[int, str] = {}
    query = parse_query("灯台", get_tokenizer("auto"))
    for add, n in steps:
        if add and n not in stored:
            stored[n] = await store_text(database, f"灯台{n}号の管理人は毎朝レンズを磨きます。")
        elif not add and n in stored:
            await library.delete_document(database, stored.pop(n), user_id="u")
        results = await service.search("灯台の管理人のレンズ", user_id="u", limit=20)
        assert {hit.document_id for hit in results.items} == set(stored.values())
        assert results == await SearchService(database, SETTINGS).search(
            "灯台の管理人のレンズ", user_id="u", limit=20
        )
        counts = await database.run_blocking_read(
            lambda connection: service._engine._index.open_snapshot(
                connection, OWN
            ).read_statistics(query)
        )
        assert (counts.chunks, counts.words["灯台"]) == (len(stored), len(stored))
    for document_id in stored.values():
        await library.delete_document(database, document_id, user_id="u")


@pytest.mark.sqlite
@pytest.mark.parametrize("newer", [0, 2])
async def test_a_restored_backup_clears_the_caches(
    database: Database, tmp_path: Path, newer: int
) -> None:
    """Cached chunks with the same ids are dropped, whichever of the two files has more changes."""
    index = SearchIndex()
    backup = Database(
        f"sqlite+aiosqlite:///{shutil.copy(tmp_path / 'kotae.db', tmp_path / 'backup.db')}"
    )
    for text in ("Otters sleep in kelp.", "Penguins sleep in caves."):
        await store_text(database, text)
    for text in ("Lanterns.", "Lamps.", "Lights.")[: 1 + newer]:
        await store_text(backup, text)
    query = parse_query("otters lanterns", get_tokenizer("auto"))

    def read(connection: sa.Connection) -> tuple[list[int], list[float], str]:
        snapshot = index.open_snapshot(connection, OWN)
        return (
            list(snapshot.read_statistics(query).words.values()),
            snapshot.count_terms(query, [1]).counts[0, :2].tolist(),
            snapshot.read_chunks([1])[1].text,
        )

    results = [await opened.run_blocking_read(read) for opened in (database, backup, database)]
    otters, lanterns = ([1, 0], [1, 0], "Otters sleep in kelp."), ([0, 1], [0, 1], "Lanterns.")
    assert results == [otters, lanterns, otters]
    await backup.close()


async def count_word(database: Database, word: str, visibility: Visibility) -> tuple[int, int]:
    """Return the numbers of visible chunks, and of those that contain a word."""
    query = parse_query(word, get_tokenizer("auto"))
    statistics = await database.run_blocking_read(
        lambda connection: (
            SearchIndex().open_snapshot(connection, visibility).read_statistics(query)
        )
    )
    return statistics.chunks, statistics.words[query.words[0]]


async def test_statistics_count_visible_chunks(database: Database) -> None:
    """A user counts own and shared chunks, an admin all of them."""
    for user_id, shared in (("u", False), ("v", False), ("v", False), ("w", True)):
        await store_text(database, f"A lantern of {user_id}.", user_id=user_id, shared=shared)
    await store_text(database, "A harbour.", user_id="v")

    assert await count_word(database, "lantern", OWN) == (2, 2)
    assert await count_word(database, "lantern", Visibility("nobody", None)) == (1, 1)
    assert await count_word(database, "harbour", OWN) == (2, 0)
    assert await count_word(database, "lantern", ALL) == (4, 3)


async def test_sharing_moves_chunks_to_another_scope(database: Database) -> None:
    """A document is found by whoever sees it after each change of its owner or its sharing."""
    document_id = await store_text(database, "A lantern.", user_id="v")

    async def change(**values: Any) -> list[int]:
        async with database.transaction() as session:
            await session.execute(
                sa.update(documents).where(documents.c.id == document_id).values(**values)
            )
        return [
            len((await search(database, "lantern", user_id=user_id)).items)
            for user_id in ("u", "v", "w", None)
        ]

    assert await change(title="L") == [0, 1, 0, 1]
    assert await change(shared=True) == [1, 1, 1, 1]
    assert await change(shared=False, user_id="w") == [0, 0, 1, 1]
    assert await change(shared=True) == [1, 1, 1, 1]
    await library.delete_document(database, document_id, user_id="w")
    for visibility in (OWN, Visibility("v", None), Visibility("w", None), ALL):
        assert await count_word(database, "lantern", visibility) == (0, 0)


async def test_uploads_of_others_keep_the_caches(database: Database) -> None:
    """After an upload of another user, a search reads no posting list again."""
    await store_text(database, "A lantern.")
    index = SearchIndex()
    query = parse_query("lantern", get_tokenizer("auto"))

    def read(connection: sa.Connection) -> tuple[int, int]:
        snapshot = index.open_snapshot(connection, OWN)
        snapshot.select_candidates(snapshot.read_statistics(query))
        return index._postings.frequencies.size, index._postings.postings.size

    before = await database.run_blocking_read(read)
    await store_text(database, "Another lantern.", user_id="v")
    assert await database.run_blocking_read(read) == before
    await store_text(database, "One more lantern.")
    assert await database.run_blocking_read(read) > before
