"""Usage, quotas and plans through the routes."""

from pydantic import SecretStr

from tests.access import SECRET, client, make_key
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}


async def test_users_are_found_by_a_part_of_their_id(serve: Serve) -> None:
    """In any case; characters that are wildcards in SQL are themselves."""
    service = await serve()
    for user in ("Ann", "joann", "bob", "a_b"):
        await service.client.put(f"/ai/users/{user}", json={"disabled": True})
    users = {}
    for part in ("ann", "_", "%", "zzz"):
        response = await service.client.get("/ai/users", params={"q": part})
        users[part] = [item["user_id"] for item in response.json()["items"]]

    assert users == {"ann": ["Ann", "joann"], "_": ["a_b"], "%": [], "zzz": []}


async def test_usage_reports_used_held_and_left(serve: Serve, fake: ProviderFake) -> None:
    """Limits with used, held and left amounts, and totals that equal the sum of the rows."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    limits = {"tokens_per_day": 5000, "cost_usd_per_month": "1.50", "concurrent": 3}
    await service.client.put("/ai/plans/team", json=limits | {"cost_usd_per_month": None})
    await service.client.put("/ai/users/alice/quota", json={"plan": "team"})
    async with (
        client(service, await make_key(service, "alice")) as alice,
        client(service, await make_key(service, "bob")) as bob,
    ):
        answers = [(await alice.post("/ai/test", json=ASK)).json() for _ in range(3)]
        await service.wait_idle()
        usage = (await alice.get("/ai/usage")).json()
        usage_for_admin = (
            await service.client.get("/ai/usage", params={"user_id": "alice"})
        ).json()
        is_problem(await bob.get("/ai/usage", params={"user_id": "alice"}), 404, "not_found")
        is_problem(await bob.get("/ai/users/alice/quota"), 404, "not_found")
        is_problem(
            await alice.get("/ai/usage", params={"since": "2020-01-01"}), 422, "invalid_request"
        )
        assert (await bob.get("/ai/usage")).json()["limits"] == []
        assert (await bob.get("/ai/usage")).json()["totals"] == []

    spent = sum(answer["total_tokens"] for answer in answers)
    assert usage == usage_for_admin | {"limits": usage["limits"]}
    assert usage["limits"][0] | {"reset_seconds": 1} == {
        "name": "tokens_per_day",
        "of": "user",
        "limit": 5000,
        "used": spent,
        "held": 0,
        "left": 5000 - spent,
        "reset_seconds": 1,
    }
    assert usage["limits"][1] == {
        "name": "concurrent",
        "of": "user",
        "limit": 3,
        "used": 0,
        "held": 0,
        "left": 3,
        "reset_seconds": None,
    }
    assert usage["used"]["tokens_per_month"] == {"used": spent, "held": 0}
    assert usage["used"]["cost_usd_per_day"] == {"used": "0", "held": "0"}
    (total,) = usage["totals"]
    assert (
        total["answers"],
        total["prompt_tokens"] + total["completion_tokens"],
        total["unpriced"],
    ) == (3, spent, 3)


async def test_quotas_and_plans_take_effect_immediately(serve: Serve, fake: ProviderFake) -> None:
    """A user's own limits, their plan's or the default plan's apply from the next request."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    root = service.client
    async with client(service, await make_key(service, "alice")) as alice:

        async def force() -> object:
            return (await alice.get("/ai/users/alice/quota")).json()["in_force"]

        assert await force() is None
        await root.put("/ai/plans/default", json={"requests_per_minute": 0})
        assert await force() == {"requests_per_minute": 0}
        is_problem(await alice.post("/ai/test", json=ASK), 400, "beyond_quota")
        await root.put("/ai/plans/team", json={"cost_usd_per_day": "0.25", "concurrent": 9})
        await root.put("/ai/users/alice/quota", json={"plan": "team"})
        assert await force() == {"cost_usd_per_day": "0.25", "concurrent": 9}
        await root.put("/ai/users/alice/quota", json={"limits": {"concurrent": 2}})
        assert await force() == {"concurrent": 2}
        assert (await alice.post("/ai/test", json=ASK)).status_code == 200
        is_problem(await alice.put("/ai/users/alice/quota", json={"limits": {}}), 403, "forbidden")
        is_problem(
            await root.put("/ai/users/alice/quota", json={"plan": "nobody"}), 404, "not_found"
        )
        is_problem(
            await root.put("/ai/users/alice/quota", json={"plan": "team", "limits": {}}),
            422,
            "invalid_request",
        )
        is_problem(
            await root.put("/ai/plans/team", json={"cost_usd_per_day": "-1"}),
            422,
            "invalid_request",
        )
        for markup in ("0", "1000.1", "1.0000001", "NaN", True):
            response = await root.put("/ai/plans/team", json={"markup": markup})
            is_problem(response, 422, "invalid_request")
        terms = {"prepaid": True, "markup": "1.5"}
        plan = (await root.put("/ai/plans/team", json=terms | {"markup": "1.50"})).json()
        assert plan == {"name": "team", "limits": {}} | terms
        assert (await root.put("/ai/plans/team", json=plan)).json() == plan
        await root.put("/ai/users/alice/quota", json={})
        assert (await root.delete("/ai/plans/default")).status_code == 204
        assert await force() is None
    assert [plan["name"] for plan in (await root.get("/ai/plans")).json()["items"]] == ["team"]
    assert (await root.post("/ai/test", json=ASK)).status_code == 200


async def test_request_for_another_user_is_charged_to_that_user(
    serve: Serve, fake: ProviderFake
) -> None:
    """A request for another user is limited by that user's limits."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    await service.client.put("/ai/plans/default", json={"requests_per_minute": 1})
    first = await service.client.post("/ai/test", json=ASK | {"user_id": "new"})
    second = await service.client.post("/ai/test", json=ASK | {"user_id": "new"})

    assert first.status_code == 200
    assert is_problem(second, 429, "quota_exceeded")["of"] == "user"
    assert (await service.client.post("/ai/test", json=ASK)).status_code == 200


async def test_key_limits_apply_in_addition_to_user_limits(
    serve: Serve, fake: ProviderFake
) -> None:
    """A key that reached its limit does not affect the user's other keys."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    small = (
        await service.client.post(
            "/ai/keys", json={"user_id": "alice", "limits": {"requests_per_minute": 1}}
        )
    ).json()
    assert small["limits"] == {"requests_per_minute": 1}
    async with (
        client(service, small["key"]) as limited,
        client(service, await make_key(service, "alice")) as unlimited,
    ):
        assert (await limited.post("/ai/test", json=ASK)).status_code == 200
        assert (
            is_problem(await limited.post("/ai/test", json=ASK), 429, "quota_exceeded")["of"]
            == "key"
        )
        assert (await unlimited.post("/ai/test", json=ASK)).status_code == 200
        is_problem(await limited.post("/ai/keys", json={}), 403, "forbidden")


async def test_disabled_user_is_refused_immediately(serve: Serve) -> None:
    """A disabled user is refused from the next request until enabled again."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    async with client(service, await make_key(service, "alice")) as alice:
        assert (await alice.get("/ai/logs")).status_code == 200
        assert (await service.client.put("/ai/users/alice", json={"disabled": True})).json()[
            "disabled"
        ] is True
        is_problem(await alice.get("/ai/logs"), 401, "unauthorized")
        await service.client.put("/ai/users/alice", json={"disabled": False})
        assert (await alice.get("/ai/logs")).status_code == 200
    assert [
        user["user_id"] for user in (await service.client.get("/ai/users")).json()["items"]
    ] == ["alice"]


async def test_put_accepts_what_get_returns(serve: Serve) -> None:
    """Quota, user and plan can be written back as they were read, which changes nothing."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    await service.client.put("/ai/plans/team", json={"cost_usd_per_day": "1.5"})
    await service.client.put("/ai/users/alice/quota", json={"plan": "team"})
    quota = (await service.client.get("/ai/users/alice/quota")).json()
    (user,) = (await service.client.get("/ai/users")).json()["items"]
    (plan,) = (await service.client.get("/ai/plans")).json()["items"]

    assert (await service.client.put("/ai/users/alice/quota", json=quota)).json() == user
    assert (await service.client.put("/ai/users/alice", json=user)).json() == user
    assert (await service.client.put("/ai/plans/team", json=plan)).json() == plan
    assert (await service.client.get("/ai/users/alice/quota")).json() == quota


async def test_put_rejects_the_id_of_another_user(serve: Serve) -> None:
    """A body that was read from one user is not written to another one."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    body = {"user_id": "alice", "disabled": False}

    is_problem(await service.client.put("/ai/users/bob", json=body), 422, "invalid_request")
    is_problem(await service.client.put("/ai/users/bob/quota", json=body), 422, "invalid_request")


async def test_texts_of_a_user_are_erased(serve: Serve, fake: ProviderFake) -> None:
    """Rows of the user lose their texts for good and keep their numbers; others keep theirs."""
    service = await serve(
        auth="keys", secret=SecretStr(SECRET), openai_base_url=fake.base_url, model="m"
    )
    keys = {name: await make_key(service, name) for name in ("alice", "bob")}
    question = {"prompt": "Why?", "grounded": False}
    answers = {}
    for name, key in keys.items():
        async with client(service, key) as caller:
            answers[name] = (await caller.post("/ai/test", json=question)).json()
    async with client(service, SECRET) as root:
        path = "/ai/users/alice/texts"
        erased = [(await root.delete(path)).json()["erased"] for _ in range(2)]
        rows = {
            name: (await root.get(f"/ai/logs/{answer['id']}")).json()
            for name, answer in answers.items()
        }
        unknown = (await root.delete("/ai/users/nobody/texts")).json()
        reply = await root.get(f"/ai/conversations/{answers['alice']['id']}")

    assert (erased, unknown) == ([1, 0], {"user_id": "nobody", "erased": 0})
    assert (rows["alice"]["prompt"], rows["alice"]["response"]) == ("", "")
    assert rows["alice"]["erased_at"] is not None
    assert rows["alice"]["total_tokens"] == answers["alice"]["total_tokens"]
    assert rows["bob"] == answers["bob"]
    is_problem(reply, 410, "erased")
