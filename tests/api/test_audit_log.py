"""GET /ai/audit-log: which requests are recorded, who may read it, and exports."""

import csv
import io
import json
from typing import Any

import httpx2
import pytest

from service.core.auth.principals import Role
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}


async def start(serve: Serve, fake: ProviderFake) -> tuple[Service, httpx2.AsyncClient]:
    """A service with an admin `root`, whose client is returned."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    return service, client(service, await make_key(service, "root", Role.ADMIN))


async def list_reads(root: httpx2.AsyncClient) -> set[tuple[Any, ...]]:
    """The reads that are recorded: action, user and target."""
    items = (await root.get("/ai/audit-log")).json()["items"]
    return {
        (item["action"], item["user_id"], item["target_id"])
        for item in items
        if item["action"].partition(".")[2] in {"read", "exported", "searched"}
    }


async def test_reads_of_other_users_texts_are_recorded(serve: Serve, fake: ProviderFake) -> None:
    """Answers, rows, exports, conversations, documents and searches of admins have an entry."""
    service, root = await start(serve, fake)
    alice = client(service, await make_key(service, "alice"))
    async with root, alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()
        upload = (await alice.post("/ai/upload", json={"text": "The zebra code is 4711."})).json()
        await service.wait_idle()
        id_, document = answer["id"], upload["document_id"]
        expected: set[tuple[Any, ...]] = set()
        for path, params, accept, entry in [
            (f"/ai/logs/{id_}", {}, "", ("answer.read", "alice", id_)),
            ("/ai/logs", {}, "", ("log.read", None, None)),
            ("/ai/logs", {"user_id": "alice"}, "", ("log.read", "alice", None)),
            ("/ai/logs", {}, "text/csv", ("log.exported", None, None)),
            (f"/ai/conversations/{id_}", {}, "", ("conversation.read", "alice", id_)),
            (f"/ai/documents/{document}", {}, "", ("document.read", "alice", document)),
            ("/ai/search", {"q": "zebra"}, "", ("document.searched", None, None)),
        ]:
            for _ in range(2):
                response = await root.get(path, params=params, headers={"Accept": accept})
                assert response.status_code == 200, path
            expected.add(entry)
            assert await list_reads(root) == expected


async def test_own_texts_and_numbers_are_not_recorded(serve: Serve, fake: ProviderFake) -> None:
    """Reads of own answers, of answers asked on behalf of others, and of rows without texts."""
    service, root = await start(serve, fake)
    alice = client(service, await make_key(service, "alice"))
    async with root, alice:
        own = (await root.post("/ai/test", json=ASK)).json()
        behalf = (await root.post("/ai/test", json=ASK | {"user_id": "bob"})).json()
        hers = (await alice.post("/ai/test", json=ASK)).json()
        await service.wait_idle()
        for caller, path in [
            (root, f"/ai/logs/{own['id']}"),
            (root, f"/ai/answers/{behalf['id']}"),
            (root, f"/ai/logs/{behalf['id']}"),
            (root, f"/ai/conversations/{own['id']}"),
            (root, "/ai/logs?user_id=root"),
            (root, "/ai/logs?fields=id,user_id,total_tokens"),
            (root, "/ai/analytics?metrics=cost"),
            (alice, "/ai/logs"),
            (alice, f"/ai/answers/{hers['id']}"),
        ]:
            assert (await caller.get(path)).status_code == 200, path

        assert await list_reads(root) == set()


async def test_words_that_are_searched_count_as_a_read(serve: Serve, fake: ProviderFake) -> None:
    """A filter by words tells what a text contains, whatever fields are sent."""
    service, root = await start(serve, fake)
    alice = client(service, await make_key(service, "alice"))
    async with root, alice:
        await alice.post("/ai/test", json=ASK)
        await service.wait_idle()
        await root.get("/ai/logs", params={"fields": "id", "q": "why"})

        assert await list_reads(root) == {("log.read", None, None)}


async def test_erasure_and_changes_of_others_are_recorded(serve: Serve, fake: ProviderFake) -> None:
    """Erased texts and conversations, changed and deleted documents, each with its user."""
    service, root = await start(serve, fake)
    alice = client(service, await make_key(service, "alice"))
    async with root, alice:
        first = (await alice.post("/ai/test", json=ASK)).json()["id"]
        await alice.post("/ai/test", json=ASK)
        document = (await alice.post("/ai/upload", json={"text": "Zebra."})).json()["document_id"]
        await service.wait_idle()
        for method, path, body in [
            ("DELETE", f"/ai/conversations/{first}", None),
            ("DELETE", f"/ai/conversations/{first}", None),
            ("DELETE", "/ai/users/alice/texts", None),
            ("DELETE", "/ai/users/alice/texts", None),
            ("PATCH", f"/ai/documents/{document}", {"title": "Secret title", "date": None}),
            ("DELETE", f"/ai/documents/{document}", None),
        ]:
            response = await root.request(method, path, json=body)
            assert response.is_success, (path, response.text)
        response = await root.get("/ai/audit-log", params={"actor": "root"})

    entries = [
        (item["action"], item["user_id"], item["target_id"], item["detail"])
        for item in response.json()["items"][::-1]
    ]
    assert entries == [
        ("conversation.erased", "alice", first, {}),
        ("user.texts_erased", "alice", "alice", {}),
        ("document.changed", "alice", document, {"fields": ["date", "title"]}),
        ("document.deleted", "alice", document, {}),
    ]
    assert "Secret" not in response.text


async def test_own_data_is_changed_without_an_entry(serve: Serve, fake: ProviderFake) -> None:
    """Users erase their conversations and delete their documents unrecorded, but not their keys."""
    service, root = await start(serve, fake)
    alice = client(service, await make_key(service, "alice"))
    async with root, alice:
        answer = (await alice.post("/ai/test", json=ASK)).json()["id"]
        document = (await alice.post("/ai/upload", json={"text": "Zebra."})).json()["document_id"]
        await service.wait_idle()
        await alice.delete(f"/ai/conversations/{answer}")
        await alice.delete(f"/ai/documents/{document}")
        await alice.post("/ai/keys", json={"name": "laptop"})
        items = (await root.get("/ai/audit-log", params={"actor": "alice"})).json()["items"]

    assert [(item["action"], item["credential"]) for item in items] == [("key.created", "key")]


async def test_an_entry_names_the_key_and_the_request(serve: Serve, fake: ProviderFake) -> None:
    """With the id of the request, as in the log lines of the service."""
    _, root = await start(serve, fake)
    async with root:
        response = await root.put("/ai/users/bob", json={"disabled": True})
        (item,) = (await root.get("/ai/audit-log?action=user.disabled")).json()["items"]
        key_id = (await root.get("/ai/keys")).json()["items"][0]["id"]

    assert item["request_id"] == response.headers["x-request-id"]
    assert (item["actor"], item["key_id"], item["user_id"]) == ("root", key_id, "bob")


async def test_open_mode_records_changes_only(serve: Serve, fake: ProviderFake) -> None:
    """There is one caller, so reads of rows of others are not recorded."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    await service.client.post("/ai/test", json=ASK | {"user_id": "bob"})
    await service.wait_idle()
    await service.client.get("/ai/logs")
    await service.client.put("/ai/users/bob", json={"disabled": True})
    (item,) = (await service.client.get("/ai/audit-log")).json()["items"]

    assert (item["actor"], item["credential"], item["action"]) == ("local", "open", "user.disabled")


async def test_pages_filters_and_bad_parameters(serve: Serve) -> None:
    """Pages continue at `next_cursor`; unknown actions and cursors are refused."""
    service = await serve()
    for n in range(3):
        await service.client.put(f"/ai/users/u{n}", json={"disabled": True})
    first = (await service.client.get("/ai/audit-log", params={"limit": 2})).json()
    second = (
        await service.client.get(
            "/ai/audit-log", params={"limit": 2, "cursor": first["next_cursor"]}
        )
    ).json()
    is_problem(await service.client.get("/ai/audit-log?action=x"), 422, "invalid_request")
    is_problem(await service.client.get("/ai/audit-log?cursor=x"), 400, "invalid_cursor")
    filtered = await service.client.get("/ai/audit-log?user_id=u0&user_id=u2&since=-1h")

    assert [item["user_id"] for item in first["items"] + second["items"]] == ["u2", "u1", "u0"]
    assert second["next_cursor"] is None
    assert [item["user_id"] for item in filtered.json()["items"]] == ["u2", "u0"]


@pytest.mark.parametrize("accept", ["text/csv", "application/x-ndjson"])
async def test_exports_contain_every_entry(serve: Serve, accept: str) -> None:
    """All pages, with the detail as JSON, also in CSV."""
    service = await serve()
    for n in range(3):
        await service.client.put("/ai/plans/team", json={"concurrent": n})
    response = await service.client.get(
        "/ai/audit-log", params={"limit": 1}, headers={"Accept": accept}
    )
    name = "csv" if accept == "text/csv" else "ndjson"
    linked = await service.client.get("/ai/audit-log", params={"format": name})
    assert (linked.text, linked.headers["content-type"].split(";")[0]) == (response.text, accept)
    if accept == "text/csv":
        rows = list(csv.DictReader(io.StringIO(response.text)))
        details = [json.loads(row["detail"]) for row in rows]
    else:
        details = [json.loads(line)["detail"] for line in response.text.splitlines()]

    assert [detail["new"] for detail in details] == [{"concurrent": n} for n in (2, 1, 0)]
