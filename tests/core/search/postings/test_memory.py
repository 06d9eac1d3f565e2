"""The index in memory says what FTS5 says, and is read when uploads rest."""

import asyncio
from functools import partial
from itertools import pairwise
from threading import Event

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.search import bm25
from service.core.search.bm25 import Digest, digests, numbered
from service.core.search.index import Index, Seen
from service.core.search.postings.memory import InMemory, Inverted
from service.core.search.ranking import Query, parse
from service.core.search.service import Retrieval
from service.core.settings import Settings
from service.core.text.tokenizer import tokenizer
from service.workers.warming import Warming
from tests.conftest import Serve

SETTINGS = Settings(_env_file=None)
EVERYTHING = Seen(None, None)
TERM = st.text("abcあ漢", min_size=1, max_size=2)
TERMS = st.lists(TERM, max_size=12)
CHUNKS = st.dictionaries(st.integers(1, 10**12), st.tuples(TERMS, TERMS), max_size=12)
Chunks = dict[int, tuple[list[str], list[str]]]


def digested(chunks: Chunks) -> dict[int, Digest]:
    """Chunks with these words and grams."""
    return digests([(n, " ".join(words), " ".join(grams), f"hash of {n}") for n, (words, grams) in chunks.items()])


@given(CHUNKS, st.lists(TERM, unique=True), st.data())
def test_what_stands_where_is_as_in_the_chunks(chunks: Chunks, words: list[str], data: st.DataObject) -> None:
    """Of each term: in how many chunks it stands, in which, and how often; whatever is asked for of whatever there is."""
    phrases = [(a, b) for a, b in pairwise(words) if a != b]
    asked = numbered(words, phrases, words)
    found = InMemory(Inverted(digested(chunks)), Query(words, phrases, words, asked, bare=False, latin=False))
    standing = {("words", word): sorted(id_ for id_, (there, _) in chunks.items() if word in there) for word in words}
    standing |= {("grams", gram): sorted(id_ for id_, (_, there) in chunks.items() if gram in there) for gram in words}
    assert found.frequencies() == {term: len(ids) for term, ids in standing.items()}
    weights = {term: n + 0.5 for n, term in enumerate(standing)}
    ids, worth = found.weighed(weights)
    assert list(zip(ids.tolist(), worth.tolist(), strict=True)) == [(id_, weights[term]) for term in standing for id_ in standing[term]]
    some = data.draw(st.lists(st.sampled_from(sorted(chunks)), unique=True)) if chunks else []
    known = digested({id_: chunks[id_] for id_ in some})
    mine, wanted = found.observed(known), bm25.observed(asked, known)
    assert (mine.ids, mine.content_hashes) == (wanted.ids, wanted.content_hashes)
    assert mine.often.tolist() == wanted.often.tolist()
    assert mine.lengths.tolist() == wanted.lengths.tolist()
    assert [one.tolist() for one in mine.words] == [one.tolist() for one in wanted.words]


async def give(database: Database, *texts: str, user_id: str = "u") -> list[str]:
    """Documents of one chunk each."""
    given = [library.Given("T", text, "utf-8") for text in texts]
    return [document.document_id for document in await library.store(database, SETTINGS, ChunkWorkers(), given, user_id=user_id)]


@pytest.fixture
async def tied(database: Database) -> Database:
    """More chunks that say nearly the same than are ranked, of several lengths."""
    texts = [f"A lantern {'and one more lantern ' * (n % 5)}in the {'old ' * (n % 7)}tower, number {n}." for n in range(200)]
    await give(database, *texts)
    await give(database, "A lantern of somebody else.", user_id="other")
    return database


@pytest.mark.parametrize("seen", [EVERYTHING, Seen("u", None), Seen("other", None)], ids=["all", "u", "other"])
@pytest.mark.parametrize("text", ["lantern", "lantern tower", "old lantern number 7", "more old lanterns", "灯台", "nothing of it"])
async def test_the_candidates_are_those_of_fts5(tied: Database, text: str, seen: Seen) -> None:
    """In the same order, also where many are equal and FTS5's own BM25 has to tell them apart."""
    query = parse(text, tokenizer("auto"))
    cold, warm = Index(whole_max=0), Index(whole_max=1000)

    def look(index: Index, connection: sa.Connection) -> tuple[bool, list[int]]:
        here = index.at(connection, query)
        return isinstance(here._postings, InMemory), here.candidates(here.counts(), seen)

    assert await tied.look(partial(warm.warm, stop=Event())) == 201
    in_memory, candidates = await tied.look(partial(look, warm))
    assert in_memory
    assert await tied.look(partial(look, cold)) == (False, candidates)


async def test_what_has_changed_is_seen_at_once(tied: Database) -> None:
    """A document that was added, and one that was deleted, after the index was read; and again when it has been read anew."""
    retrieval = Retrieval(tied, SETTINGS)
    assert await retrieval.warm() == 201
    (new,) = await give(tied, "The otter sleeps.")
    for warms in (False, True):
        if warms:
            assert await retrieval.warm() == 202
        assert [hit.document_id for hit in (await retrieval.search("otter", user_id="u", limit=5)).items] == [new]
    await library.delete(tied, new, user_id="u")
    for warms in (False, True):
        if warms:
            assert await retrieval.warm() == 201
        assert (await retrieval.search("otter", user_id="u", limit=5)).items == []


async def test_what_is_too_large_is_left_to_fts5(tied: Database) -> None:
    """Also what grows too large: then what was read is let go."""
    query = parse("lantern", tokenizer("auto"))
    index = Index(whole_max=201)
    assert await tied.look(partial(index.warm, stop=Event())) == 201
    await give(tied, "One more.")
    assert await tied.look(partial(index.warm, stop=Event())) == 0
    assert index._whole is None
    assert (await tied.look(lambda connection: index.at(connection, query).counts())).words == {"lantern": 201}


async def test_reading_can_be_stopped(tied: Database) -> None:
    """It ends at its next step, and nothing is half read."""
    index, stop = Index(whole_max=1000, yield_seconds=60), Event()
    reading = asyncio.create_task(tied.look(partial(index.warm, stop=stop)))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(30):
        assert await reading == 0
    assert index._whole is None


async def test_a_cancelled_reading_is_stopped(tied: Database) -> None:
    """As at the end of the process, which would wait for the thread."""
    began, ended = Event(), Event()

    class Endless:
        def warm(self, _connection: sa.Connection, stop: Event) -> int:
            began.set()
            if stop.wait(60):
                ended.set()
            return 0

    retrieval = Retrieval(tied, SETTINGS)
    vars(retrieval)["_search"] = Endless()
    reading = asyncio.create_task(retrieval.warm())
    assert await asyncio.to_thread(began.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(ended.wait, 30)


async def test_an_empty_index_is_read_too(database: Database) -> None:
    """There is nothing, and nothing is found."""
    retrieval = Retrieval(database, SETTINGS)
    assert await retrieval.warm() == 0
    assert (await retrieval.search("lantern", user_id="u", limit=5)).items == []


async def test_the_worker_waits_for_a_search_and_for_uploads_to_rest(tied: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read for nobody; a look that finds something new only remembers it; one that finds the same reads it, once."""
    retrieval = Retrieval(tied, SETTINGS)
    worker = Warming(tied, retrieval)
    for _ in range(3):
        await worker.tick()
    assert not retrieval.in_use
    await retrieval.search("lantern", user_id="u", limit=5)
    await worker.tick()
    await give(tied, "One more.")
    await worker.tick()
    assert worker.statistics().chunks == 0
    await worker.tick()
    assert worker.statistics().chunks == 202
    monkeypatch.setattr(retrieval, "warm", None)  # it would break
    await worker.tick()


async def test_the_service_tells_what_is_in_memory(serve: Serve) -> None:
    """/health/ready has the worker, and after a search what it read."""
    service = await serve(seeded=True)
    worker = service.rooms.workers["warming"]
    assert isinstance(worker, Warming)
    assert (await service.client.get("/health/ready")).json()["warming"] == {"chunks": 0, "failures": 0}
    await service.client.get("/ai/search", params={"q": "lighthouse"})
    for _ in range(2):
        await worker.tick()
    assert (await service.client.get("/health/ready")).json()["warming"]["chunks"] > 10
