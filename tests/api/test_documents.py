"""Samples, pagination, and the limit of waiting searches."""

import asyncio

from service.core.limits import ServiceLimits
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


async def test_too_many_searches_are_refused(serve: Serve) -> None:
    """A search beyond the limit of searches in progress is refused; the others are served."""
    service = await serve(seeded=True, limits=ServiceLimits(searches_max=3))
    retrieval, query = service.services.retrieval, {"q": "返品"}
    async with retrieval._turns.turn(), asyncio.timeout(20):
        waiting = [
            asyncio.create_task(service.client.get("/ai/search", params=query)) for _ in range(3)
        ]
        while retrieval.waiting_searches < 3:
            await asyncio.sleep(0.001)
        refused = await service.client.get("/ai/search", params=query)

    assert is_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert all(response.json()["items"] for response in await asyncio.gather(*waiting))
