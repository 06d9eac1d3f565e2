"""Uploads: encodings, several files, limits, samples, pagination."""

import asyncio

import pytest

from service.core.limits import ServiceLimits
from tests.conftest import Serve
from tests.end_to_end.test_grounding import EN, JA
from tests.problems import is_problem

FILES = {
    "utf-8": ("案内.txt", JA.encode()),
    "utf-8-sig": ("bom.txt", JA.encode("utf-8-sig")),
    "utf-16": ("wide.txt", JA.encode("utf-16")),
    "cp932": ("sjis.txt", JA.encode("cp932")),
    "euc_jp": ("euc.md", JA.encode("euc-jp")),
}


@pytest.mark.parametrize("encoding", FILES)
async def test_files_are_decoded_in_their_encoding(serve: Serve, encoding: str) -> None:
    """A file is decoded in its own encoding, which the response names."""
    service = await serve()
    response = await service.client.post("/ai/upload", files={"files": FILES[encoding]})

    document = response.json()
    assert (response.status_code, document["encoding"], document["created"]) == (
        201,
        encoding,
        True,
    )
    assert (await service.client.get(f"/ai/documents/{document['document_id']}")).json()[
        "text"
    ] == JA
    assert document["characters"] == len(JA)
    assert document["title"] == FILES[encoding][0]


async def test_nul_and_lone_surrogates_are_replaced(serve: Serve) -> None:
    """Title, text and file name are stored with U+FFFD in place of NUL and lone surrogates."""
    service = await serve()
    body = b'{"title": "a\\u0000\\ud800b", "text": "c\\u0000\\udfffd"}'
    named = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="e\0f.txt"\r\n\r\n'
        b"one line of a log \0 with a NUL\r\n--x--\r\n"
    )
    as_json = await service.client.post(
        "/ai/upload", content=body, headers={"Content-Type": "application/json"}
    )
    as_form = await service.client.post(
        "/ai/upload", content=named, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    stored = [
        (await service.client.get(f"/ai/documents/{response.json()['document_id']}")).json()
        for response in (as_json, as_form)
    ]

    assert [(item["title"], item["text"]) for item in stored] == [
        ("a\ufffd\ufffdb", "c\ufffd\ufffdd"),
        ("e\ufffdf.txt", "one line of a log \ufffd with a NUL"),
    ]


async def test_several_files_are_stored_together_or_not_at_all(serve: Serve) -> None:
    """One file that is not text rejects the whole upload, naming the file and the reason."""
    service = await serve()
    good, image = (
        ("files", ("good.txt", EN.encode())),
        ("files", ("photo.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
    )
    refused = await service.client.post("/ai/upload", files=[good, image])
    nothing = (await service.client.get("/ai/documents")).json()["items"]
    stored = (
        await service.client.post("/ai/upload", files=[good, ("files", FILES["cp932"])])
    ).json()["items"]

    assert (refused.status_code, refused.json()["code"]) == (415, "not_text")
    assert "photo.png" in refused.json()["detail"]
    assert nothing == []
    assert [document["title"] for document in stored] == ["good.txt", "sjis.txt"]


async def test_same_text_twice_is_one_document(serve: Serve) -> None:
    """The same text in another encoding and under another name is found, not stored again."""
    service = await serve()
    first = (await service.client.post("/ai/upload", files={"files": FILES["utf-8"]})).json()
    again = await service.client.post("/ai/upload", files={"files": FILES["cp932"]})

    assert (again.status_code, again.json()["created"], again.json()["document_id"]) == (
        200,
        False,
        first["document_id"],
    )
    assert len((await service.client.get("/ai/documents")).json()["items"]) == 1


async def test_uploads_have_limits(serve: Serve) -> None:
    """Too large files, too many files and too many documents are refused with the limit."""
    service = await serve(
        upload_file_bytes_max=1000, limits=ServiceLimits(upload_files_max=2), documents_max=1
    )
    large = await service.client.post("/ai/upload", files={"files": ("large.txt", b"word " * 300)})
    many = await service.client.post(
        "/ai/upload", files=[("files", (f"{n}.txt", f"text {n}".encode())) for n in range(3)]
    )
    both = await service.client.post(
        "/ai/upload", files=[("files", (f"{n}.txt", f"text {n}".encode())) for n in range(2)]
    )

    assert [large.json()["code"], many.json()["code"], both.json()["code"]] == [
        "too_large",
        "too_large",
        "documents_full",
    ]
    assert (await service.client.get("/ai/documents")).json()["items"] == []


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


async def test_uploads_in_progress_are_bounded(serve: Serve) -> None:
    """An upload beyond the budget is rejected before it is read to its end."""
    service = await serve(limits=ServiceLimits(uploads_max=1), upload_file_bytes_max=10_000)
    with service.services.upload_budget.begin_body("local") as add_bytes:
        add_bytes(195_000)
        refused = await service.client.post("/ai/upload", json={"text": "a" * 9_000})
    stored = await service.client.post("/ai/upload", json={"text": "a" * 9_000})

    is_problem(refused, 503, "overloaded")
    assert stored.status_code == 201
    assert service.services.upload_budget.bytes_in_progress == 0
