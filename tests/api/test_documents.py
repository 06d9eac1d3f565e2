"""Samples, pagination, and the limit of waiting searches."""

import asyncio

from service.api.documents import SEARCHES_WAITING_MAX
from tests.conftest import Serve
from tests.problems import is_problem


async def test_seeding_twice_changes_nothing(serve: Serve) -> None:
    """POST /seed returns the same documents again, none of them new."""
    service = await serve()
    first = (await service.client.post("/seed")).json()["items"]
    second = (await service.client.post("/seed")).json()["items"]

    assert [document["document_id"] for document in first] == [
        document["document_id"] for document in second
    ]
    assert {document["created"] for document in second} == {False}


async def test_documents_are_listed_by_pages(serve: Serve) -> None:
    """Pages list every document once, newest first."""
    service = await serve(seeded=True)
    listed, params = [], {"limit": "4"}
    while True:
        page = (await service.client.get("/ai/documents", params=params)).json()
        listed += [document["document_id"] for document in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]

    assert listed == sorted(set(listed), reverse=True)
    assert len(listed) == 10


async def test_too_many_waiting_searches_are_refused(serve: Serve) -> None:
    """A search beyond the limit of waiting searches is refused; the others are served."""
    service = await serve(seeded=True)
    retrieval = service.services.retrieval
    async with retrieval._semaphore, asyncio.timeout(20):
        searches = [
            retrieval.search("返品", user_id=None, limit=1) for _ in range(SEARCHES_WAITING_MAX)
        ]
        waiting = [asyncio.create_task(search) for search in searches]
        while retrieval.waiting_searches < SEARCHES_WAITING_MAX:
            await asyncio.sleep(0)
        refused = await service.client.get("/ai/search", params={"q": "返品"})

    assert is_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert all(result.items for result in await asyncio.gather(*waiting))
