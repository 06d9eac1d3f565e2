"""Receipts over HTTP: who gets them, and the public keys."""

from service.core.accounting.receipt_keys import verify_receipt
from service.core.auth.principals import Role
from tests.access import client, make_key
from tests.conftest import Serve
from tests.problems import is_problem


async def test_receipt_of_an_answer(serve: Serve) -> None:
    """It has the account of the log row, and anybody can verify it with the published keys."""
    service = await serve()
    answer = (await service.client.post("/ai/test", json={"prompt": "Why?"})).json()
    await service.wait_idle()
    receipt = (await service.client.get(f"/ai/logs/{answer['id']}/receipt")).json()
    response = await service.client.get("/.well-known/jwks.json")

    keys = {key["kid"]: key for key in response.json()["keys"]}
    claims = verify_receipt(receipt["receipt"], keys)
    assert claims.answer.id == answer["id"] == receipt["answer_id"]
    assert claims.answer.status == answer["status"]
    assert (claims.sub, claims.number) == ("local", 1)
    assert response.headers["cache-control"] == "public, max-age=300"
    assert (await service.client.get("/ai/receipts")).json() == {
        "items": [receipt],
        "next_cursor": None,
    }


async def test_public_keys_before_the_first_receipt(serve: Serve) -> None:
    """The key set is empty, and nothing is created by reading it."""
    service = await serve()

    assert (await service.client.get("/.well-known/jwks.json")).json() == {"keys": []}
    assert not list(service.services.settings.data_dir.glob("receipt_key*"))


async def test_receipts_are_private(serve: Serve) -> None:
    """Other users get 404 or nothing, admins everything; the number of the chain is the user's."""
    service = await serve(auth="keys")
    ann = client(service, await make_key(service, "ann"))
    bob = client(service, await make_key(service, "bob"))
    boss = client(service, await make_key(service, "root", Role.ADMIN))
    async with ann, bob, boss:
        answer = (await ann.post("/ai/test", json={"prompt": "Why?"})).json()
        await service.wait_idle()
        path = f"/ai/logs/{answer['id']}/receipt"

        is_problem(await bob.get(path), 404, "not_found")
        receipt = (await boss.get(path)).json()
        assert receipt == (await ann.get(path)).json()
        listed = {"user_id": "ann"}
        assert (await bob.get("/ai/receipts", params=listed)).json()["items"] == []
        assert (await boss.get("/ai/receipts", params=listed)).json()["items"] == [receipt]
        assert (await boss.get("/ai/receipts")).json()["items"] == []


async def test_pages_of_receipts(serve: Serve) -> None:
    """The cursor is the number of the last receipt."""
    service = await serve()
    for _ in range(3):
        answer = (await service.client.post("/ai/test", json={"prompt": "Why?"})).json()
        await service.wait_idle()
        await service.wait_idle()
        await service.client.get(f"/ai/logs/{answer['id']}/receipt")
    page = (await service.client.get("/ai/receipts", params={"limit": 2})).json()
    rest = (await service.client.get("/ai/receipts", params={"cursor": page["next_cursor"]})).json()

    assert [item["number"] for item in page["items"]] == [1, 2]
    assert [item["number"] for item in rest["items"]] == [3]
    assert rest["next_cursor"] is None


async def test_running_and_unknown_answers_have_no_receipt(serve: Serve) -> None:
    """404, as for the log row."""
    service = await serve()

    is_problem(await service.client.get("/ai/logs/x/receipt"), 404, "not_found")
