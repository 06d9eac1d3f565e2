"""Refusals over HTTP: nearest passages, missing words, greetings, the list of documents."""

import asyncio
import csv
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.core.answering.refusals import Refusal, RefusalComposer
from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.library import NewDocument
from service.core.grounding.refusals import NEAREST_MAX, TITLES_MAX
from service.core.search.service import SearchService
from service.core.settings import Settings
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake
from tests.sse import collect, text_of
from tests.streams import read_all_events, wait_evicted

OFF_TOPIC = [
    (
        "How do I install nginx in the kitchen of an office or a museum?",
        "The documents do not mention nginx.",
    ),
    ("会社や博物館の冷蔵庫にnginxを導入する手順は？", "「nginx」は文書にありません。"),
]


@pytest.mark.parametrize(("question", "missing"), OFF_TOPIC)
async def test_a_refusal_has_the_nearest_passages_and_the_missing_word(
    serve: Serve, fake: ProviderFake, question: str, missing: str
) -> None:
    """`nearest` has three passages with their best sentence, which are never sources."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)

    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
    async with service.client.stream("POST", "/ai/stream", json={"prompt": question}) as response:
        events = await collect(response)

    assert answer["response"].endswith(missing)
    assert [passage["n"] for passage in answer["nearest"]] == list(range(1, NEAREST_MAX + 1))
    for passage in answer["nearest"]:
        assert passage.keys() == {"n", "document_id", "chunk_id", "title", "text", "sentence"}
        assert passage["text"][slice(*passage["sentence"])]
        document = await service.client.get(f"/ai/documents/{passage['document_id']}")
        assert passage["text"] in document.json()["text"]
    assert answer["sources"] == events[0].json["context"] == []
    assert events[-1].json["nearest"] == answer["nearest"]
    assert fake.calls == []


@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_refusal_is_replayed_unchanged(serve: Serve, in_memory: bool) -> None:
    """By id, event id and idempotency key the same passages return, from memory or the log."""
    service = await serve(seeded=True, resume_seconds=15 if in_memory else 0)
    body, headers = {"prompt": OFF_TOPIC[0][0]}, {"Idempotency-Key": "k"}
    started = (await service.client.post("/ai/answers", json=body, headers=headers)).json()
    url = f"/ai/answers/{started['id']}/events"
    whole = await read_all_events(service, url)
    await service.wait_idle()
    if not in_memory:
        await wait_evicted(service)

    again = await read_all_events(service, url)
    rest = await read_all_events(service, url, f"{started['id']}.{len(text_of(whole))}")
    by_id = (await service.client.get(f"/ai/answers/{started['id']}")).json()
    row = (await service.client.get(f"/ai/logs/{started['id']}")).json()
    async with service.client.stream("POST", "/ai/stream", json=body, headers=headers) as response:
        by_key = await collect(response)

    assert again == whole
    assert rest == whole[-1:] == by_key[-1:]
    assert whole[-1].json["nearest"] == by_id["nearest"] == row["nearest"] != []


async def test_lists_omit_the_nearest_passages(serve: Serve) -> None:
    """Pages, tails and exports of the log have no `nearest`; a single row has it."""
    service = await serve(seeded=True)
    ids = [
        (await service.client.post("/ai/test", json={"prompt": question})).json()["id"]
        for question, _ in OFF_TOPIC
    ]
    rows = await service.rows()
    tail = (await service.client.get("/ai/logs", params={"after": ids[0]})).json()["items"]
    lines = (
        await service.client.get("/ai/logs", headers={"Accept": "application/x-ndjson"})
    ).text.splitlines()
    table = (await service.client.get("/ai/logs", headers={"Accept": "text/csv"})).text

    assert len(rows) == 2
    assert len(tail) == 1
    assert not any("nearest" in row for row in [*rows, *tail, *map(json.loads, lines)])
    assert "nearest" not in next(csv.reader(io.StringIO(table)))
    assert (await service.client.get(f"/ai/logs/{ids[0]}")).json()["nearest"]


async def test_other_answers_have_no_nearest_passages(serve: Serve) -> None:
    """A completed answer has no field `nearest`."""
    service = await serve(seeded=True)
    answer = (await service.client.post("/ai/test", json={"prompt": "送料はいくらですか？"})).json()

    assert answer["status"] == "completed"
    assert "nearest" not in answer
    assert "nearest" not in (await service.client.get(f"/ai/logs/{answer['id']}")).json()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", "Hello!"),
        ("こんにちは", "こんにちは。"),
        ("thanks", "welcome"),
        ("what do you know about?", "- {title}"),
        ("何について聞けますか", "- {title}"),
    ],
)
async def test_greetings_and_questions_about_the_collection_cost_nothing(
    serve: Serve, fake: ProviderFake, prompt: str, expected: str
) -> None:
    """They are answered with `no_context`, cost 0 and without a provider call, and have a row."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)
    documents = (await service.client.get("/ai/documents")).json()["items"]

    answer = (await service.client.post("/ai/test", json={"prompt": prompt})).json()

    assert expected.format(title=documents[0]["title"]) in answer["response"]
    assert (answer["status"], answer["usage_source"], answer["estimated_cost"]) == (
        "no_context",
        "none",
        "0",
    )
    assert (answer["nearest"], answer["sources"]) == ([], [])
    assert (await service.row())["response"] == answer["response"]
    assert fake.calls == []


async def test_the_list_of_documents_is_bounded(serve: Serve) -> None:
    """Only the newest titles are listed; a restriction to documents lists these only."""
    service = await serve()
    for n in range(TITLES_MAX + 3):
        body = {"title": f"Title {n}", "text": f"Text number {n}."}
        document = (await service.client.post("/ai/upload", json=body)).json()
    question: dict[str, Any] = {"prompt": "What documents do you have?"}

    every = (await service.client.post("/ai/test", json=question)).json()["response"]
    one = (
        await service.client.post(
            "/ai/test", json=question | {"documents": [document["document_id"]]}
        )
    ).json()["response"]

    assert every.count("\n- Title") == TITLES_MAX
    assert every.endswith("… and 3 more.")
    assert one.splitlines()[2:] == [f"- Title {TITLES_MAX + 2}"]


async def test_without_documents_a_refusal_says_so(serve: Serve) -> None:
    """With an empty collection the refusal asks for documents."""
    service = await serve()
    answer = (await service.client.post("/ai/test", json={"prompt": "What is nginx?"})).json()

    assert "no documents yet" in answer["response"]
    assert (answer["status"], answer["nearest"]) == ("no_context", [])


WORDS = ("nginx", "parcel", "France", "富士山", "コーヒー", "museum")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
PROMPTS = st.one_of(
    TEXTS.map("What is {}?".format), TEXTS, st.sampled_from(["hello", "what do you know about?"])
)


async def compose(folder: Path, uploads: list[tuple[str, str]], prompt: str) -> Refusal:
    """Return what the user `me` gets for a prompt after these uploads of (user, text)."""
    settings = Settings(dictionary="none")
    database = Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}")
    search = SearchService(database, settings)
    for owner, text in uploads:
        new = NewDocument(f"{owner}: {text}", text, "utf-8")
        await library.store_documents(database, settings, ChunkWorkers(), [new], user_id=owner)
    composer = RefusalComposer(database, search)
    reply = await composer.reply_without_search(prompt, user_id="me", within=None)
    results = await search.search(prompt, user_id="me", limit=10)
    refusal = reply or await composer.refuse(prompt, results, user_id="me", within=None)
    await database.close()
    return refusal


@pytest.mark.slow
@hypothesis_settings(max_examples=25)
@given(
    mine=st.lists(TEXTS, max_size=3),
    others=st.lists(TEXTS, min_size=1, max_size=5),
    prompt=PROMPTS,
)
def test_uploads_of_others_do_not_change_a_refusal(
    migrated: Path, mine: list[str], others: list[str], prompt: str
) -> None:
    """Text and passages of a refusal depend only on documents that the caller can see."""

    def run(uploads: list[tuple[str, str]]) -> tuple[str, list[object]]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(migrated, Path(folder) / "kotae.db")
            refusal = asyncio.run(compose(Path(folder), uploads, prompt))
        # Ids differ between the two databases.
        passages: list[object] = [
            (item.n, item.title, item.text, item.sentence) for item in refusal.nearest
        ]
        return refusal.text, passages

    own = [("me", text) for text in mine]

    assert run(own) == run([*(("other", text) for text in others), *own])


async def test_answers_report_a_corrected_question(serve: Serve, fake: ProviderFake) -> None:
    """`searched_for` is in `start`, the answer and its row; the model gets the prompt as it is."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)
    question = "How many days of paid laeve are there per year?"
    corrected = question.replace("laeve", "leave")

    async with service.client.stream("POST", "/ai/stream", json={"prompt": question}) as response:
        events = await collect(response)
    await service.wait_idle()
    row = (await service.client.get(f"/ai/logs/{events[-1].json['id']}")).json()
    quoted = {"prompt": question, "model": "extractive"}
    answer = (await service.client.post("/ai/test", json=quoted)).json()

    assert events[0].json["searched_for"] == events[-1].json["searched_for"] == corrected
    assert (row["searched_for"], row["prompt"]) == (corrected, question)
    assert question in fake.calls[0].body["messages"][-1]["content"]
    assert (answer["status"], answer["searched_for"]) == ("completed", corrected)
