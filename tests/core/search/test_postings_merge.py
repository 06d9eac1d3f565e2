"""Merging of posting rows in PostgreSQL: the content never changes, removed chunks are found."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search import postings_merge
from service.core.settings import Settings
from service.workers.merging import IndexMerger
from tests.postgres import PostgresServer, temporary_database

pytestmark = pytest.mark.slow
SETTINGS = Settings(_env_file=None)
WORDS = ["lantern", "keeper", "storm", "harbour", "bell", "灯台", "港"]
STORED = sa.text(
    "SELECT token, array_agg(id ORDER BY id) FROM postings, unnest(ids) AS id GROUP BY token"
)
COUNTED = sa.text("SELECT token, sum(chunks) FROM postings GROUP BY token")
EXPECTED = sa.text(
    "SELECT token, array_agg(id ORDER BY id), count(DISTINCT id)"
    " FROM chunks, kotae_list_tokens(scope, words, grams) AS token GROUP BY token"
)
LENGTHS = sa.text("SELECT id, terms FROM chunk_lengths ORDER BY id")
EXPECTED_LENGTHS = sa.text("SELECT id, kotae_count_terms(words, grams) FROM chunks ORDER BY id")
ROWS = sa.text("SELECT count(*) FROM postings")
BOUNDS = sa.text(
    "SELECT count(*) FROM postings WHERE first <> ids[1] OR last <> ids[cardinality(ids)]"
)


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A PostgreSQL database."""
    async with temporary_database(postgres) as opened:
        yield opened


@pytest.fixture
def workers() -> Iterator[ChunkWorkers]:
    """The processes that split documents."""
    with closing(ChunkWorkers()) as opened:
        yield opened


async def store(
    database: Database, workers: ChunkWorkers, choose: random.Random, count: int
) -> list[str]:
    """Store documents of one or several chunks."""
    texts = [
        "\n\n".join(
            f"# {n} {choose.random()}\n\n" + " ".join(choose.choices(WORDS, k=60)) + "."
            for n in range(choose.randint(1, 3))
        )
        for _ in range(count)
    ]
    documents = [library.NewDocument("T", text, "utf-8") for text in texts]
    stored = await library.store_documents(database, SETTINGS, workers, documents, user_id="u")
    return [document.document_id for document in stored]


async def check_index(database: Database) -> int:
    """Compare the index with the chunks; returns the number of its rows."""
    async with database.read_session() as session:
        expected = {row[0]: (row[1], row[2]) for row in await session.execute(EXPECTED)}
        stored = {row[0]: row[1] for row in await session.execute(STORED)}
        counted = {row[0]: int(row[1]) for row in await session.execute(COUNTED)}
        lengths = (await session.execute(LENGTHS)).all()
        assert lengths == (await session.execute(EXPECTED_LENGTHS)).all()
        wrong_bounds = (await session.execute(BOUNDS)).scalar_one()
        rows = int((await session.execute(ROWS)).scalar_one())
    assert {token: (stored[token], counted[token]) for token in stored} == expected
    assert wrong_bounds == 0
    return rows


async def test_the_index_equals_the_chunks_after_any_changes(
    database: Database, workers: ChunkWorkers
) -> None:
    """Documents are stored, deleted and shared in any order, with merges in between."""
    choose = random.Random(5)
    ids = await store(database, workers, choose, 30)
    for _ in range(40):
        action = choose.choice(["store", "delete", "share", "merge"])
        if action == "store":
            ids += await store(database, workers, choose, 3)
        elif action == "merge":
            await postings_merge.merge_postings(database, pause_seconds=0)
        elif ids:
            document_id = choose.choice(ids)
            if action == "delete":
                ids.remove(document_id)
                await library.delete_document(database, document_id, user_id="u")
            else:
                shared = {"shared": choose.random() < 0.5}
                await library.update_document(
                    database, SETTINGS, workers, document_id, shared, user_id="u"
                )
        await check_index(database)
    before = await check_index(database)
    await postings_merge.merge_postings(database, pause_seconds=0)

    assert await check_index(database) < before


async def test_a_frequent_term_is_merged_in_parts(
    database: Database, workers: ChunkWorkers
) -> None:
    """Terms with more rows than one transaction may join keep all ids."""
    await store(database, workers, random.Random(1), 25)
    before = await check_index(database)
    merged = await postings_merge.merge_postings(database, pause_seconds=0, rows_at_once=4)

    assert merged > 0
    assert await check_index(database) == before - merged


async def test_an_index_is_merged_after_enough_changes(
    database: Database, workers: ChunkWorkers
) -> None:
    """The worker merges when uploads pause, and not again without changes."""
    merger = IndexMerger(database)
    await store(database, workers, random.Random(2), 60)
    for _ in range(60):
        async with database.transaction() as session:
            await session.execute(sa.text("UPDATE index_scopes SET version = version + 1"))
    await merger.check_index()
    before = await check_index(database)
    await merger.check_index()
    after = await check_index(database)
    await merger.check_index()

    assert after < before
    assert (merger.statistics().merges, merger.statistics().pending) == (1, False)
    assert not await postings_merge.needs_merge(database, 49)
