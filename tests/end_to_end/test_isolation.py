"""Answers and searches of a user do not depend on the documents of others, in any byte."""

import json
import random
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from service.core.auth.principals import Role
from service.core.database.tables import chunks, documents
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.workers.test_embedding import wait_filled

QUESTIONS = [
    "When is the boiler in the cellar inspected?",
    "boiler",
    "Who keeps the key of hut 17?",
    "ボイラーの点検はいつですか？",
    "点検",
    "How much is shipping?",
    "What is the capital of Mongolia?",
    "When is the boilar in the celler inspcted?",
    "chimneysweep",
    "ボイラの転検",
    "ぼいらーのてんけん",
    "boira no tenken",
    "Wann wird der Heizkessel geprüft?",
    "Heizkesseln",
    "锅炉什么时候检查?",
]
# As many chunks as make the search choose candidates by BM25 for a frequent word.
MINE = [f"Hut {n}. The boiler is warm; the key of hut {n} is with keeper {n}." for n in range(90)]
MINE += [
    "The boiler in the cellar is inspected every October by the chimney sweep.",
    "地下室のボイラーの点検は毎年十月に行われます。",
    "Der Heizkessel im Keller wird jeden Oktober vom Schornsteinfeger geprüft.",
]
# With words that would be better corrections than those of the observed documents.
ADDED = [f"{question} boilars cellars inspect inspcter chimney sweeper" for question in QUESTIONS]
VARIABLE = {
    "id",
    "conversation_id",
    "created_at",
    "response_time_ms",
    "first_token_ms",
    "request_id",
}
SEED = 17
STEPS = 12


async def upload(caller: httpx2.AsyncClient, *texts: str) -> list[str]:
    """Upload texts as files, twenty at a time, and return their ids."""
    ids: list[str] = []
    for begin in range(0, len(texts), 20):
        files = [("files", (f"{n}.txt", text)) for n, text in enumerate(texts[begin : begin + 20])]
        response = await caller.post("/ai/upload", files=files)
        assert response.status_code in {200, 201}, response.text
        ids += [item["document_id"] for item in response.json()["items"]]
    return ids


async def read_everything(caller: httpx2.AsyncClient, within: str) -> list[bytes]:
    """Return searches and answers, without the fields that differ between any two answers."""
    responses = []
    for question in QUESTIONS:
        for options in ({"limit": "50"}, {"documents": within}):
            response = await caller.get("/ai/search", params={"q": question, **options})
            responses.append(response.content)
        body = {"prompt": question, "model": "extractive"}
        answer = (await caller.post("/ai/test", json=body)).json()
        stable = {name: value for name, value in answer.items() if name not in VARIABLE}
        responses.append(json.dumps(stable).encode())
    return responses


class Others:
    """Two users, who upload, delete and share documents at random."""

    def __init__(self, service: Service, callers: list[httpx2.AsyncClient]) -> None:
        self._database = service.services.database
        self._callers = callers
        self._choose = random.Random(SEED)
        self._stored: list[tuple[httpx2.AsyncClient, str]] = []

    async def change(self) -> None:
        """Upload copies and variants of the observed documents, or delete or share and unshare."""
        action = self._choose.choice(["upload", "upload", "delete", "share"])
        if action == "upload" or not self._stored:
            caller = self._choose.choice(self._callers)
            texts = [
                f"{text} {self._choose.choice(ADDED)}" if self._choose.random() < 0.5 else text
                for text in self._choose.sample(MINE, 20)
            ]
            self._stored += [(caller, id_) for id_ in await upload(caller, *texts)]
            return
        self._choose.shuffle(self._stored)
        if action == "delete":
            for caller, id_ in {(caller, id_) for caller, id_ in self._stored[:7]}:
                assert (await caller.delete(f"/ai/documents/{id_}")).status_code in {204, 404}
            self._stored = self._stored[7:]
            return
        ids = [id_ for _, id_ in self._stored[:5]]
        for shared in (True, False):
            async with self._database.transaction() as session:
                await session.execute(
                    sa.update(documents).where(documents.c.id.in_(ids)).values(shared=shared)
                )


async def wait_embedded(service: Service) -> None:
    """Wait until each text has a vector."""
    texts = sa.select(chunks.c.scope, chunks.c.content_hash).distinct().subquery()
    async with service.services.database.read_session() as session:
        count = (await session.execute(sa.select(sa.func.count()).select_from(texts))).scalar_one()
    await wait_filled(service, count)


@pytest.mark.slow
@pytest.mark.parametrize("embeddings", ["none", "openai"])
async def test_documents_of_others_change_no_byte(
    serve: Serve, fake: ProviderFake, embeddings: str
) -> None:
    """Uploads, deletions and sharing of others change neither searches nor grounded answers."""
    service = await serve(
        auth="keys", seeded=True, openai_base_url=fake.base_url, embeddings=embeddings
    )
    mine = client(service, await make_key(service, "mine"))
    callers = [client(service, await make_key(service, name)) for name in ("other", "third")]
    ids = await upload(mine, *MINE)
    others = Others(service, callers)
    if embeddings != "none":
        await wait_embedded(service)
    before = await read_everything(mine, ids[3])
    assert {json.loads(response).get("status") for response in before} == {
        None,
        "completed",
        "no_context",
    }
    assert (b"cosine" in before[0]) is (embeddings != "none")

    for _ in range(STEPS):
        await others.change()
        assert await read_everything(mine, ids[3]) == before
    if embeddings != "none":
        await wait_embedded(service)
        assert await read_everything(mine, ids[3]) == before

    for caller in (mine, *callers):
        await caller.aclose()


async def test_an_admin_searches_the_documents_of_all_users(serve: Serve) -> None:
    """An admin finds documents of all owners; on behalf of a user, only those of that user."""
    service = await serve(auth="keys")
    admin = client(service, await make_key(service, "boss", Role.ADMIN))
    for name in ("one", "two"):
        caller = client(service, await make_key(service, name))
        await upload(caller, f"The lantern of {name} is green.")
        await caller.aclose()

    results = (await admin.get("/ai/search", params={"q": "lantern"})).json()
    assert len(results["items"]) == 2
    body: dict[str, Any] = {"prompt": "Is the lantern of one green?", "user_id": "one"}
    answer = (await admin.post("/ai/test", json=body)).json()
    assert [source["text"] for source in answer["sources"]] == ["The lantern of one is green."]
    await admin.aclose()
