"""The routes of API keys."""

from pydantic import SecretStr

from tests.access import SECRET, client
from tests.conftest import Serve
from tests.problems import is_problem


async def test_keys_through_the_routes(serve: Serve) -> None:
    """A user creates, lists, rotates and revokes keys; a revoked key is refused immediately."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    first = (
        await service.client.post(
            "/ai/keys", json={"user_id": "alice", "name": "laptop", "expires_in_days": 30}
        )
    ).json()
    end = first["expires_at"]
    async with client(service, first["key"]) as alice:
        is_problem(await alice.post("/ai/keys", json={"role": "admin"}), 403, "forbidden")
        is_problem(await alice.post("/ai/keys", json={"user_id": "bob"}), 403, "forbidden")
        narrow = (await alice.post("/ai/keys", json={"scopes": ["logs"], "expires_at": end})).json()
        rotated = (
            await alice.post(f"/ai/keys/{narrow['id']}/rotate", json={"grace_seconds": 0})
        ).json()
        listed = (await alice.get("/ai/keys")).json()["items"]
        async with client(service, narrow["key"]) as old, client(service, rotated["key"]) as new:
            is_problem(await old.get("/ai/logs"), 401, "unauthorized")
            assert (await new.get("/ai/logs")).status_code == 200
            is_problem(await new.get("/ai/keys"), 403, "forbidden")
            assert (await alice.delete(f"/ai/keys/{rotated['id']}")).status_code == 204
            is_problem(await new.get("/ai/logs"), 401, "unauthorized")

    assert [item["name"] for item in listed] == ["", "", "laptop"]
    assert all("key" not in item and item["prefix"].startswith("kt_") for item in listed)


async def test_a_rotated_key_is_a_conflict_on_the_wire(serve: Serve) -> None:
    """The second rotation of a key is a 409 with its own code."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    old = (await service.client.post("/ai/keys", json={"user_id": "alice"})).json()
    new = (await service.client.post(f"/ai/keys/{old['id']}/rotate")).json()
    problem = is_problem(
        await service.client.post(f"/ai/keys/{old['id']}/rotate"), 409, "key_replaced"
    )

    assert new["id"] in problem["detail"]
