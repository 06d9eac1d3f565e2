"""Contract of `IndexReader`, on both databases: frequencies, weights and order of postings."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search.postings.cached import (
    MARKS,
    SCOPES_AT_ONCE,
    SCOPES_CACHED,
    CachedPostings,
    IndexScope,
    PostingCache,
)
from service.core.search.postings.fts5 import Fts5Reader
from service.core.search.postings.postgres import PostgresReader
from service.core.search.ranking import Term
from service.core.settings import Settings

pytestmark = pytest.mark.every_database
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
    read_postings: Callable[[CachedPostings], T],
    cache: PostingCache | None = None,
    *,
    users: str = "u",
    version: int | None = None,
) -> T:
    """Read from the posting lists of the scopes of these users."""

    def run(connection: sa.Connection) -> T:
        reader = (
            PostgresReader(connection)
            if database.dialect == "postgresql"
            else Fts5Reader(connection.connection.cursor())
        )
        scopes = [scope for user in users for scope in reader.read_scopes(user) if scope.chunks]
        if version is not None:
            scopes = [msgspec.structs.replace(scope, version=version) for scope in scopes]
        return read_postings(CachedPostings(reader, cache or PostingCache(), scopes))

    return await database.run_blocking_read(run)


def read_harbour(postings: CachedPostings) -> dict[Term, int]:
    """Read the frequency of a word."""
    return postings.read_frequencies([("words", "harbour")])


async def test_frequencies_count_chunks(indexed: Database) -> None:
    """The document frequency of a term is the number of chunks that contain it, or 0."""
    terms = [("words", "lantern"), ("words", "tower"), ("words", "otter"), ("grams", "tower")]
    frequencies = await read(indexed, lambda postings: postings.read_frequencies(terms))

    assert frequencies == dict(zip(terms, (3, 1, 0, 0), strict=True))


async def test_postings_have_the_weight_of_their_term(indexed: Database) -> None:
    """Each posting has the weight of its term, one term after the other."""
    weights = {("words", "tower"): 2.5, ("words", "lantern"): 0.5}
    ids, repeated = await read(indexed, lambda postings: postings.read_weighted(weights))

    assert list(zip(ids.tolist(), repeated.tolist(), strict=True)) == [
        (2, 2.5),
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
    ]


async def test_intervals_of_posting_lists(indexed: Database) -> None:
    """Of a list, the ids within some intervals are read; the bounds are those of all tokens."""

    def find(postings: CachedPostings) -> tuple[list[list[int]], tuple[int, int]]:
        scope = postings._scopes[0].id
        tokens = [f"{scope}{MARKS['words']}{word}" for word in ("old", "tower", "lantern")]
        lists = postings._reader.read_within(tokens, [(0, 1), (3, 9)])
        return [ids.tolist() for ids in lists], postings._reader.read_bounds(tokens[:2])

    assert await read(indexed, find) == ([[4], [], [1, 3]], (2, 4))


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
async def test_long_lists_change_no_selection(indexed: Database, limit: int) -> None:
    """Lists that are read in part lead to the same chunks and sums as whole ones."""
    weights = {("words", "lantern"): 0.5, ("words", "old"): 0.4, ("words", "tower"): 2.5}

    def find(postings: CachedPostings) -> list[list[tuple[int, float]]]:
        reader, scopes = postings._reader, postings._scopes
        several = [
            CachedPostings(reader, PostingCache(), scopes, whole_max=maximum)
            for maximum in (100, 3, 0)
        ]
        return [list(each.select_heaviest(weights, limit).items()) for each in several]

    whole, *pruned = await read(indexed, find)
    assert pruned == [whole, whole]
    assert [id_ for id_, _ in whole] == [2, 1, 3, 4][:limit]


async def test_matches_are_ordered_by_bm25(indexed: Database) -> None:
    """More occurrences and shorter chunks come first, up to the limit."""
    ordered = await read(indexed, lambda postings: postings.find_matches({"lantern": 3}, None))

    assert ordered == [3, 1, 2]
    assert await read(indexed, lambda postings: postings.find_matches({"lantern": 3}, 2)) == [
        3,
        1,
    ]


@pytest.mark.sqlite
async def test_matches_have_the_order_of_fts5(indexed: Database) -> None:
    """For one scope the order is that of FTS5's own `bm25`, with k1 = 1.2 / 2."""
    words = {"lantern": 3, "old": 2, "tower": 1}
    matches = await read(indexed, lambda postings: postings.find_matches(words, None))

    async with indexed.read_session() as session:
        rows = await session.exec_driver_sql(
            "SELECT rowid FROM chunk_terms WHERE chunk_terms MATCH ?"
            " ORDER BY bm25(chunk_terms, 2.0), rowid",
            (" OR ".join(f'"1\ue000{word}"' for word in words),),
        )
        assert matches == list(rows.scalars())


async def test_operators_are_terms(indexed: Database) -> None:
    """Query syntax of FTS5 is read as terms."""
    assert (
        await read(
            indexed,
            lambda postings: postings.find_matches({"or": 0, "near": 0}, None),
        )
        == []
    )


async def test_scopes_have_their_own_postings(indexed: Database) -> None:
    """Chunks of another owner are neither counted nor returned, those of both scopes together."""
    new = [library.NewDocument("T", "A lantern abroad.", "utf-8")]
    await library.store_documents(
        indexed, Settings(_env_file=None), ChunkWorkers(), new, user_id="v"
    )

    def find(postings: CachedPostings) -> tuple[int, list[int], list[int]]:
        word = ("words", "lantern")
        frequency = postings.read_frequencies([word])[word]
        ids, _ = postings.read_weighted({word: 1})
        return frequency, ids.tolist(), sorted(postings.find_matches({"lantern": frequency}, None))

    results = [await read(indexed, find, users=users) for users in ("u", "v", "uv")]
    assert results == [
        (3, [1, 2, 3], [1, 2, 3]),
        (1, [5], [5]),
        (4, [1, 2, 3, 5], [1, 2, 3, 5]),
    ]


async def test_frequencies_are_cached_by_version(indexed: Database) -> None:
    """Frequencies of a version of a scope come from the cache, even if the index has changed."""
    cache = PostingCache()
    before = await read(indexed, read_harbour, cache, version=1)
    await library.store_documents(
        indexed,
        Settings(_env_file=None),
        ChunkWorkers(),
        [library.NewDocument("T", "A harbour.", "utf-8")],
        user_id="u",
    )

    assert before == await read(indexed, read_harbour, cache, version=1)
    assert before != await read(indexed, read_harbour, cache, version=2)


async def test_many_scopes_are_read_with_pauses_and_without_the_cache(indexed: Database) -> None:
    """Beside scopes of many others, postings are the same; the cache remains for users."""
    words = {"lantern": 3, "tower": 1}
    terms = [("words", word) for word in words]
    others = [IndexScope(100 + n, 1_000 + n, 0, 0) for n in range(SCOPES_CACHED)]
    cache = PostingCache()
    pauses: list[None] = []

    def find(postings: CachedPostings) -> tuple[dict[Term, int], list[int], list[int]]:
        frequencies = postings.read_frequencies(terms)
        ids, _ = postings.read_weighted(dict.fromkeys(terms, 1.0))
        return frequencies, ids.tolist(), postings.find_matches(words, None)

    def find_among_others(postings: CachedPostings) -> tuple[dict[Term, int], list[int], list[int]]:
        scopes = [*others, *postings._scopes]
        return find(CachedPostings(postings._reader, cache, scopes, lambda: pauses.append(None)))

    assert await read(indexed, find_among_others) == await read(indexed, find)
    assert (cache.frequencies.size, cache.postings.size) == (0, 0)
    assert len(pauses) == 3 * (len(others) // SCOPES_AT_ONCE)
