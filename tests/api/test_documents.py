"""Samples, pagination, and the limit of waiting searches."""

import asyncio
from typing import Any

import pytest

from service.api.documents import format_disposition
from service.core.auth.principals import Role
from service.core.limits import ServiceLimits
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.files import build_zip
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
    async with retrieval._turn(None), asyncio.timeout(20):
        waiting = [
            asyncio.create_task(service.client.get("/ai/search", params=query)) for _ in range(3)
        ]
        while retrieval.waiting_searches < 3:
            await asyncio.sleep(0.001)
        refused = await service.client.get("/ai/search", params=query)

    assert is_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert all(response.json()["items"] for response in await asyncio.gather(*waiting))


async def store(service: Service, text: str, **fields: Any) -> str:
    """Upload a text; returns the id of the document."""
    response = await service.client.post("/ai/upload", json={"text": text, **fields})
    assert response.status_code == 201, response.text
    return str(response.json()["document_id"])


async def test_title_tags_and_date_can_be_changed(serve: Serve) -> None:
    """Absent fields stay; null removes the date."""
    service = await serve()
    document_id = await store(service, "Text.", title="Old", tags=["a"], date="2024-05-06")
    path = f"/ai/documents/{document_id}"
    changed = (
        await service.client.patch(path, json={"title": " New\n title", "date": None})
    ).json()
    tagged = (await service.client.patch(path, json={"tags": ["B", "c", "b"]})).json()

    assert [changed[name] for name in ("title", "tags", "date")] == ["New title", ["a"], None]
    assert [tagged[name] for name in ("title", "tags")] == ["New title", ["b", "c"]]


async def test_a_document_is_found_by_its_new_title(serve: Serve) -> None:
    """And no longer by the words of the old one."""
    service = await serve()
    document_id = await store(service, "It lasts two years.", title="Delivery")
    await service.client.patch(f"/ai/documents/{document_id}", json={"title": "Warranty"})
    (hit,) = (await service.client.get("/ai/search", params={"q": "warranty"})).json()["items"]
    old = await service.client.get("/ai/search", params={"q": "delivery"})

    assert hit["title"] == "Warranty"
    assert old.json()["items"] == []


@pytest.mark.parametrize(
    "body", [{"title": ""}, {"title": None}, {"tags": [""]}, {"text": "x"}, {"date": "yesterday"}]
)
async def test_invalid_changes_are_refused(serve: Serve, body: dict[str, Any]) -> None:
    """Nothing is changed."""
    service = await serve()
    document_id = await store(service, "Text.")
    response = await service.client.patch(f"/ai/documents/{document_id}", json=body)

    assert is_problem(response, 422, "invalid_request")


async def test_sharing_changes_who_finds_a_document(serve: Serve) -> None:
    """Only an admin shares; the document is found by others until it is no longer shared."""
    service = await serve(auth="keys")
    keys = await make_key(service, "alice", Role.ADMIN), await make_key(service, "bob")
    async with client(service, keys[0]) as alice, client(service, keys[1]) as bob:
        created = await alice.post("/ai/upload", json={"text": "The kettle is red."})
        path = f"/ai/documents/{created.json()['document_id']}"
        counts = []
        for shared in (True, False):
            response = await alice.patch(path, json={"shared": shared})
            assert (response.status_code, response.json()["shared"]) == (200, shared)
            hits = await bob.get("/ai/search", params={"q": "kettle"})
            counts.append(len(hits.json()["items"]))
        foreign = await bob.patch(path, json={"title": "Mine"})
        own = await bob.post("/ai/upload", json={"text": "Text of Bob."})
        refused = await bob.patch(
            f"/ai/documents/{own.json()['document_id']}", json={"shared": True}
        )

    assert counts == [1, 0]
    assert is_problem(foreign, 404, "not_found")
    assert is_problem(refused, 403, "forbidden")


async def test_lists_and_searches_are_restricted_by_tag(serve: Serve) -> None:
    """Documents with one of the tags, whatever their case."""
    service = await serve()
    for tag in ("a", "b", "c"):
        await store(service, f"The kettle of {tag}.", tags=[tag])
    tags = {"tag": ["A", "b"]}
    listed = (await service.client.get("/ai/documents", params=tags)).json()["items"]
    hits = (await service.client.get("/ai/search", params={"q": "kettle", **tags})).json()["items"]
    none = (await service.client.get("/ai/search", params={"q": "kettle", "tag": "x"})).json()

    assert sorted(item["tags"] for item in listed) == [["a"], ["b"]]
    assert len(hits) == 2
    assert none["items"] == []


async def test_answers_are_restricted_by_tag(serve: Serve) -> None:
    """By a list in the body, or by a parameter of the URL."""
    service = await serve()
    for tag, days in (("de", "ten"), ("fr", "twelve")):
        await store(service, f"The delivery takes {days} days.", tags=[tag])
    prompt = "How long does the delivery take?"
    answers = [
        (await service.client.post("/ai/test", json={"prompt": prompt, "tags": [tag]})).json()
        for tag in ("de", "fr", "it")
    ]
    stream = await service.client.get("/ai/stream", params={"prompt": prompt, "tag": "fr"})

    assert ["ten" in answers[0]["response"], "twelve" in answers[1]["response"]] == [True, True]
    assert answers[2]["status"] == "no_context"
    assert "twelve" in stream.text


async def test_lists_are_restricted_by_source_and_owner(serve: Serve) -> None:
    """By the beginning of the source, whose wildcards are ordinary characters."""
    service = await serve(seeded=True)
    for source in ("/a_b/1", "/axb/2", "/A_B/3"):
        await store(service, f"Text of {source}.", source=source)

    async def list_sources(**params: Any) -> list[str]:
        response = await service.client.get("/ai/documents", params=params)
        return [item["source"] for item in response.json()["items"]]

    assert await list_sources(source="/a_b/") == ["/a_b/1"]
    assert len(await list_sources(mine="true", source="/")) == 3


async def test_only_admins_see_owners(serve: Serve) -> None:
    """Admins see and select owners; a user who names another user gets nothing, not even shared."""
    service = await serve(auth="keys", seeded=True)
    admin = client(service, await make_key(service, "admin", Role.ADMIN))
    alice = client(service, await make_key(service, "alice"))
    async with admin, alice:
        await alice.post("/ai/upload", json={"title": "t", "text": "The kettle is blue."})
        items = (await admin.get("/ai/documents", params={"user_id": "alice"})).json()["items"]
        own = (await alice.get("/ai/documents", params={"user_id": "alice"})).json()["items"]
        everything = (await admin.get("/ai/documents")).json()["items"]
        owner = next(item["user_id"] for item in everything if item["shared"])
        others = (await alice.get("/ai/documents", params={"user_id": owner})).json()["items"]
        both = await admin.get("/ai/documents", params={"user_id": "alice", "mine": True})

    assert [(item["title"], item["user_id"]) for item in items] == [("t", "alice")]
    assert [(item["title"], "user_id" in item) for item in own] == [("t", False)]
    assert others == []
    assert both.json()["items"] == []


async def test_tags_of_others_change_nothing(serve: Serve) -> None:
    """Neither lists nor searches of a user contain what others tagged alike."""
    service = await serve(auth="keys")
    keys = await make_key(service, "alice"), await make_key(service, "bob")
    async with client(service, keys[0]) as alice, client(service, keys[1]) as bob:
        for user, name in ((alice, "Alice"), (bob, "Bob")):
            body = {"text": f"The kettle of {name}.", "tags": ["kitchen"]}
            await user.post("/ai/upload", json=body)
        listed = (await alice.get("/ai/documents", params={"tag": "kitchen"})).json()["items"]
        params = {"q": "kettle", "tag": "kitchen"}
        hits = (await alice.get("/ai/search", params=params)).json()["items"]

    assert [item["title"] for item in listed] == ["The kettle of Alice."]
    assert [hit["text"] for hit in hits] == ["The kettle of Alice."]


async def test_an_original_is_a_download_of_the_same_bytes(serve: Serve) -> None:
    """As an attachment with its name, never as a page, whatever the file contains."""
    service = await serve(originals_bytes_max=1_000_000)
    content = b"<html><body><script>alert(1)</script><p>The kettle is red.</p></body></html>"
    name = '料金"表.html'
    upload = await service.client.post("/ai/upload", files={"files": (name, content)})
    document = upload.json()
    response = await service.client.get(f"/ai/documents/{document['document_id']}/original")

    assert document["original_bytes"] == len(content)
    assert response.content == content
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-length"] == str(len(content))
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["content-disposition"].startswith('attachment; filename="')


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b.pdf", 'attachment; filename="a b.pdf"'),
        ("", 'attachment; filename="document"'),
        ('a"\\%.txt', "attachment; filename=\"a___.txt\"; filename*=UTF-8''a%22%5C%25.txt"),
        ("表.pdf", "attachment; filename=\"_.pdf\"; filename*=UTF-8''%E8%A1%A8.pdf"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
    ],
)
def test_names_of_downloads_are_encoded(name: str, expected: str) -> None:
    """As in RFC 6266: ASCII in quotes, and the exact name in UTF-8 where it differs."""
    assert format_disposition(name) == expected


async def test_originals_of_archives_are_the_files_in_them(serve: Serve) -> None:
    """Each document has the file that it was read from."""
    service = await serve(originals_bytes_max=1_000_000)
    archive = build_zip({"deep/a.txt": b"A kettle.", "b.md": b"# A teapot"})
    result = await service.client.post("/ai/upload", files={"files": ("all.zip", archive)})
    contents = [
        (await service.client.get(f"/ai/documents/{item['document_id']}/original")).content
        for item in result.json()["items"]
    ]

    assert contents == [b"A kettle.", b"# A teapot"]


async def test_originals_are_not_kept_by_default(serve: Serve) -> None:
    """Nor of texts as JSON: there is no file."""
    service = await serve()
    upload = await service.client.post("/ai/upload", files={"files": ("a.txt", b"A kettle.")})
    document = upload.json()

    assert document["original_bytes"] is None
    path = f"/ai/documents/{document['document_id']}/original"
    is_problem(await service.client.get(path), 404, "not_found")


async def test_originals_of_others_are_not_found(serve: Serve) -> None:
    """Like documents that do not exist."""
    service = await serve(auth="keys", originals_bytes_max=1_000_000)
    async with (
        client(service, await make_key(service, "alice")) as alice,
        client(service, await make_key(service, "bob")) as bob,
    ):
        upload = await alice.post("/ai/upload", files={"files": ("a.txt", b"A kettle.")})
        path = f"/ai/documents/{upload.json()['document_id']}/original"
        assert (await alice.get(path)).content == b"A kettle."
        foreign, absent = await bob.get(path), await bob.get("/ai/documents/x/original")

    is_problem(foreign, 404, "not_found")
    assert foreign.json()["detail"] == absent.json()["detail"]
