"""The routes of API keys."""

from typing import Any

import pytest
from pydantic import SecretStr

from tests.access import SECRET, client
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}


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


@pytest.mark.parametrize(
    "expires_at",
    [
        *("9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999-00:01"),
        *("0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2030-01-01T00:00:00"),
        *(0, -1, 1e18, 9e99, 253_402_300_800, "253402300800", "inf", "", True),
    ],
)
async def test_impossible_expiry_is_refused(serve: Serve, expires_at: Any) -> None:
    """An expiry that is not a time in RFC 3339 with an offset, or impossible, is refused."""
    service = await serve()

    response = await service.client.post("/ai/keys", json={"expires_at": expires_at})

    assert "expires_at" in is_problem(response, 422, "invalid_request")["detail"]


async def test_text_that_cannot_be_stored_is_replaced_or_refused(serve: Serve) -> None:
    """NUL in the name of a key becomes U+FFFD; in an identifier it is refused."""
    service = await serve()

    created = await service.client.post("/ai/keys", json={"name": "a\0b"})
    refused = [
        await service.client.post("/ai/keys", json={"user_id": "a\0b"}),
        await service.client.get("/ai/keys?user_id=a%00b"),
        await service.client.put("/ai/users/a%00b", json={"disabled": True}),
        await service.client.delete("/ai/keys/a%00b"),
    ]

    assert created.json()["name"] == "a\ufffdb"
    assert [response.status_code for response in refused] == [422] * 4


async def test_key_names_its_creator(serve: Serve) -> None:
    """`made_by` is the id of the key that created a key; none for the secret."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    admin = (await service.client.post("/ai/keys", json={"role": "admin"})).json()
    async with client(service, admin["key"]) as root:
        child = (await root.post("/ai/keys", json={"user_id": "bob"})).json()

    assert (admin["made_by"], child["made_by"]) == (None, admin["id"])


async def test_admin_key_cannot_exceed_itself(serve: Serve) -> None:
    """Expiry, limits and scopes of an admin's key bound the keys that it creates."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    wanted = {"role": "admin", "scopes": ["keys", "ask"], "expires_in_days": 1}
    admin = (await service.client.post("/ai/keys", json=wanted)).json()
    limits = {"limits": {"tokens_per_day": 5}}
    limited = (await service.client.post("/ai/keys", json={"role": "admin"} | limits)).json()
    end = {"expires_at": admin["expires_at"]}
    async with client(service, admin["key"]) as root, client(service, limited["key"]) as other:
        for body in (
            {"scopes": ["ask"]},
            {"scopes": ["ask"], "expires_in_days": 2},
            {"scopes": ["logs"], **end},
        ):
            is_problem(await root.post("/ai/keys", json=body), 403, "forbidden")
        for body in ({}, limits, {"user_id": "bob"}):
            is_problem(await other.post("/ai/keys", json=body), 403, "forbidden")
        assert (await root.post("/ai/keys", json={"scopes": ["ask"], **end})).status_code == 201


@pytest.mark.parametrize(("query", "status"), [("", 200), ("?cascade=true", 401)])
async def test_revoking_a_key_can_revoke_the_keys_it_created(
    serve: Serve, query: str, status: int
) -> None:
    """`cascade` ends the created keys at once; without it they stay valid."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    admin = (await service.client.post("/ai/keys", json={"role": "admin"})).json()
    async with client(service, admin["key"]) as root:
        child = (await root.post("/ai/keys", json={"user_id": "bob"})).json()
    async with client(service, child["key"]) as bob:
        assert (await bob.get("/ai/logs")).status_code == 200
        assert (await service.client.delete(f"/ai/keys/{admin['id']}{query}")).status_code == 204

        assert (await bob.get("/ai/logs")).status_code == status


async def test_rotation_keeps_the_usage_of_a_key(serve: Serve, fake: ProviderFake) -> None:
    """Old and new key share their limits, however often the key is rotated."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    limits = {"requests_per_minute": 2}
    key = (await service.client.post("/ai/keys", json={"user_id": "a", "limits": limits})).json()
    statuses = []
    for _ in range(3):
        async with client(service, key["key"]) as caller:
            statuses.append((await caller.post("/ai/test", json=ASK)).status_code)
            new = (await caller.post(f"/ai/keys/{key['id']}/rotate")).json()
            statuses.append((await caller.post("/ai/test", json=ASK)).status_code)
        key = new

    assert statuses == [200, 200, 429, 429, 429, 429]


async def test_rotated_key_is_a_conflict_on_the_wire(serve: Serve) -> None:
    """The second rotation of a key is a 409 with its own code."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    old = (await service.client.post("/ai/keys", json={"user_id": "alice"})).json()
    new = (await service.client.post(f"/ai/keys/{old['id']}/rotate")).json()
    problem = is_problem(
        await service.client.post(f"/ai/keys/{old['id']}/rotate"), 409, "key_replaced"
    )

    assert new["id"] in problem["detail"]
