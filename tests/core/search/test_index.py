"""The index: candidates per visibility, deleted documents, replaced database files."""

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search.index import CANDIDATES_MAX, SEEN_LOOKED, Index
from service.core.search.ranking import parse
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer
from tests.core.search.test_service import keep, look

SETTINGS = Settings(_env_file=None)


async def test_a_deleted_document_leaves_no_ghost(database: Database) -> None:
    """After a delete neither words nor grams nor counts of the document are left."""
    gone = await keep(database, "灯台の管理人は毎朝レンズを磨きます。")
    stays = await keep(database, "灯台の見学は無料です。")
    await library.delete_document(database, gone, user_id="u")
    assert [hit.document_id for hit in (await look(database, "灯台のレンズの管理人")).items] == [
        stays
    ]
    asked = parse("灯台 管理人 レンズ", get_tokenizer("auto"))
    counts = await database.run_blocking_read(
        lambda connection: Index().at(connection, asked).counts()
    )
    assert (counts.chunks, {word: n for word, n in counts.words.items() if n}) == (1, {"灯台": 1})
    assert {gram: n for gram, n in counts.grams.items() if n} == {"灯台": 1}


async def test_one_word_that_stands_everywhere_finds_where_it_stands_most(
    database: Database,
) -> None:
    """More chunks have the word than are ranked, and it alone cannot tell them apart: the best are still among those ranked."""
    filler = "A note about harbours, ropes, sails, anchors, tides, cranes, fog, nets and boats"
    some = [
        library.NewDocument("T", f"{filler} with a lantern, number {n}.", "utf-8")
        for n in range(CANDIDATES_MAX + 20)
    ]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), some, user_id="u")
    best = await keep(database, "Lantern by lantern.")
    found = await look(database, "lantern", limit=1)
    assert [hit.document_id for hit in found.items] == [best]


async def test_own_documents_are_found_behind_many_better_ones_of_others(
    database: Database,
) -> None:
    """What others have never takes the places of what the caller may see."""
    some = [
        library.NewDocument("T", f"The lantern keeper trims lantern {n}.", "utf-8")
        for n in range(SEEN_LOOKED + 50)
    ]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), some, user_id="other")
    mine = await keep(
        database, "A lantern, and much else about harbours, ropes, sails, anchors, tides and fog."
    )
    assert [hit.document_id for hit in (await look(database, "lantern keeper")).items] == [mine]
    assert [hit.document_id for hit in (await look(database, "lantern")).items] == [mine]


@settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=14))
async def test_adding_and_deleting_in_any_order_leaves_no_ghost(
    database: Database, steps: list[tuple[bool, int]]
) -> None:
    """After each step a search finds exactly the documents that are there, and the counts are those of a fresh index."""
    retrieval = SearchService(
        database, SETTINGS
    )  # one for all: what it remembers must not outlive a change
    there: dict[int, str] = {}
    query = parse("灯台", get_tokenizer("auto"))
    for add, n in steps:
        if add and n not in there:
            there[n] = await keep(database, f"灯台{n}号の管理人は毎朝レンズを磨きます。")
        elif not add and n in there:
            await library.delete_document(database, there.pop(n), user_id="u")
        found = await retrieval.search("灯台の管理人のレンズ", user_id="u", limit=20)
        assert {hit.document_id for hit in found.items} == set(there.values())
        assert found == await SearchService(database, SETTINGS).search(
            "灯台の管理人のレンズ", user_id="u", limit=20
        )
        counts = await database.run_blocking_read(
            lambda connection: retrieval._search._index.at(connection, query).counts()
        )
        assert (counts.chunks, counts.words["灯台"]) == (len(there), len(there))
    for document_id in there.values():
        await library.delete_document(database, document_id, user_id="u")


@pytest.mark.parametrize("newer", [0, 2])
async def test_a_backup_that_takes_the_place_of_the_database_is_searched_as_it_is(
    database: Database, tmp_path: Path, newer: int
) -> None:
    """What was remembered of chunks of the same numbers is forgotten, whichever of the two has changed more often."""
    index = Index()
    backup = Database(
        f"sqlite+aiosqlite:///{shutil.copy(tmp_path / 'kotae.db', tmp_path / 'backup.db')}"
    )
    for text in ("Otters sleep in kelp.", "Penguins sleep in caves."):
        await keep(database, text)
    for text in ("Lanterns.", "Lamps.", "Lights.")[: 1 + newer]:
        await keep(backup, text)
    query = parse("otters lanterns", get_tokenizer("auto"))

    def look(connection: sa.Connection) -> tuple[list[int], list[float], str]:
        here = index.at(connection, query)
        return (
            list(here.counts().words.values()),
            here.observed([1]).often[0, :2].tolist(),
            here.rows([1])[1].text,
        )

    found = [await searched.run_blocking_read(look) for searched in (database, backup, database)]
    otters, lanterns = ([1, 0], [1, 0], "Otters sleep in kelp."), ([0, 1], [0, 1], "Lanterns.")
    assert found == [otters, lanterns, otters]
    await backup.close()
