"""Uploads: formats, encodings, several files, archives, partial results, limits."""

import hashlib
from typing import Any

import pytest

from service.core.limits import ServiceLimits
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.end_to_end.test_grounding import EN, JA
from tests.fakes.files import build_pdf, build_zip
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


async def test_a_pdf_is_cited_with_its_page(serve: Serve) -> None:
    """In search results, in sources, and in the log row."""
    service = await serve()
    pages = ["The manual.", "The warranty of the kettle lasts thirty months.", "The end."]
    document = (
        await service.client.post(
            "/ai/upload", files={"files": ("a.pdf", build_pdf(pages, title="Kettle guide"))}
        )
    ).json()
    question = "How long does the warranty of the kettle last?"
    (hit, *_) = (await service.client.get("/ai/search", params={"q": question})).json()["items"]
    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()

    assert [document[name] for name in ("title", "format", "pages", "date", "encoding")] == [
        "Kettle guide",
        "pdf",
        3,
        "2024-05-06",
        "binary",
    ]
    assert hit["page"] == 2
    assert answer["sources"][0]["page"] == 2
    assert (await service.row())["sources"][0]["page"] == 2


async def test_a_text_has_no_pages(serve: Serve) -> None:
    """Even if it contains form feeds."""
    service = await serve()
    document = (
        await service.client.post("/ai/upload", files={"files": ("a.txt", b"One.\n\f\nTwo.")})
    ).json()
    (hit,) = (await service.client.get("/ai/search", params={"q": "two"})).json()["items"]

    assert (document["format"], document["pages"], document["date"]) == ("text", None, None)
    assert "page" not in hit


async def test_partial_uploads_have_a_result_per_file(serve: Serve) -> None:
    """What can be read is stored; the others have their problem."""
    service = await serve()
    files = [
        ("files", ("good.txt", b"A text.")),
        ("files", ("photo.png", b"\x89PNG\r\n")),
        ("files", ("scan.pdf", build_pdf([""]))),
        ("files", ("same.txt", b"A text.")),
    ]
    response = await service.client.post("/ai/upload?partial=true", files=files)
    items = response.json()["items"]

    assert response.status_code == 207
    assert [(item["index"], item["name"], item["status"]) for item in items] == [
        (0, "good.txt", 201),
        (1, "photo.png", 415),
        (2, "scan.pdf", 415),
        (3, "same.txt", 200),
    ]
    assert items[0]["document"]["document_id"] == items[3]["document"]["document_id"]
    assert [item["problem"]["code"] for item in items[1:3]] == ["not_text", "file_unreadable"]
    assert len((await service.client.get("/ai/documents")).json()["items"]) == 1


async def test_a_full_collection_is_a_result_as_well(serve: Serve) -> None:
    """The documents before it are stored."""
    service = await serve(documents_max=1)
    files = [("files", (f"{n}.txt", f"Text {n}.".encode())) for n in range(2)]
    response = await service.client.post("/ai/upload?partial=true", files=files)

    assert [item["status"] for item in response.json()["items"]] == [201, 409]


async def test_the_files_of_an_archive_are_stored(serve: Serve) -> None:
    """With their paths as names in the results; an archive in an archive is not opened."""
    service = await serve()
    archive = build_zip(
        {"notes/a.md": "# A\n\nText.", "b.csv": "x,y\n1,2", "c.zip": build_zip({"d.txt": "x"})}
    )
    response = await service.client.post(
        "/ai/upload?partial=true", files={"files": ("all.zip", archive)}
    )

    assert [(item["index"], item["name"], item["status"]) for item in response.json()["items"]] == [
        (0, "all.zip/notes/a.md", 201),
        (0, "all.zip/b.csv", 201),
        (0, "all.zip/c.zip", 415),
    ]


async def test_an_archive_is_stored_as_a_whole_or_not_at_all(serve: Serve) -> None:
    """The problem names the file in it."""
    service = await serve()
    archive = build_zip({"a.txt": "Text.", "b.png": b"\x89PNG\r\n"})
    response = await service.client.post("/ai/upload", files={"files": ("all.zip", archive)})

    assert is_problem(response, 415, "not_text")
    assert "'all.zip/b.png'" in response.json()["detail"]
    assert (await service.client.get("/ai/documents")).json()["items"] == []


@pytest.mark.parametrize("count", [3, 1_002])
async def test_too_many_files_are_refused_with_the_limit(serve: Serve, count: int) -> None:
    """Also if they are too many to be counted."""
    service = await serve(limits=ServiceLimits(upload_files_max=2))
    files = [("files", (f"{n}.txt", b"x")) for n in range(count)]
    response = await service.client.post("/ai/upload?partial=true", files=files)

    assert is_problem(response, 413, "too_large")
    assert "more than 2" in response.json()["detail"]


async def test_the_archives_of_an_upload_are_limited(serve: Serve) -> None:
    """In the number of their files."""
    service = await serve(limits=ServiceLimits(archive_files_max=2))
    archive = build_zip({f"{n}.txt": "x" for n in range(3)})
    response = await service.client.post("/ai/upload", files={"files": ("a.zip", archive)})

    assert is_problem(response, 413, "too_large")


async def upload(service: Service, name: str, text: str, source: str, **params: str) -> Any:
    """Upload a text file with a source; returns the document."""
    response = await service.client.post(
        "/ai/upload",
        params=params,
        data={"source": source},
        files={"files": (name, text.encode())},
    )
    assert response.status_code in {200, 201}, response.text
    return response.json()


async def list_documents(service: Service, **params: Any) -> list[Any]:
    """The listed documents."""
    items: list[Any] = (await service.client.get("/ai/documents", params=params)).json()["items"]
    return items


async def test_an_upload_replaces_what_came_from_its_source(serve: Serve) -> None:
    """It gets a new id and keeps the tags; other sources are not touched."""
    service = await serve()
    old = await upload(service, "a.txt", "Old text.", "/docs/a.txt", tag="HR")
    other = await upload(service, "a.txt", "Another text.", "/docs/b.txt")
    new = await upload(service, "a.txt", "New text.", "/docs/a.txt")

    assert new["document_id"] != old["document_id"]
    assert (new["source"], new["tags"]) == ("/docs/a.txt", ["hr"])
    assert new["file_hash"] == hashlib.sha256(b"New text.").hexdigest()
    assert {item["document_id"] for item in await list_documents(service)} == {
        new["document_id"],
        other["document_id"],
    }
    results = await service.client.get("/ai/search", params={"q": "old"})
    assert results.json()["items"] == []


async def test_a_moved_file_keeps_its_document(serve: Serve) -> None:
    """The same text from another source is the same document, with the new source."""
    service = await serve()
    first = await upload(service, "a.txt", "Text.", "/docs/a.txt")
    moved = await upload(service, "b.txt", "Text.", "/docs/b.txt")

    assert (moved["document_id"], moved["source"]) == (first["document_id"], "/docs/b.txt")


async def test_documents_are_replaced_by_title_on_request(serve: Serve) -> None:
    """Without a request, a second document gets the same title."""
    service = await serve()
    for params in ({}, {}, {"replace": "title"}):
        text = {"title": "Hours", "text": f"Text {params} {len(await list_documents(service))}."}
        await service.client.post("/ai/upload", json=text, params=params)

    (document,) = await list_documents(service)
    assert document["title"] == "Hours"


async def test_the_same_text_replaces_nothing(serve: Serve) -> None:
    """An upload with `replace` of a text that is stored already changes nothing."""
    service = await serve()
    answers = [
        await service.client.post(
            "/ai/upload", params={"replace": "title"}, json={"title": "T", "text": "A text."}
        )
        for _ in range(2)
    ]
    listed = (await service.client.get("/ai/documents")).json()["items"]

    assert [answer.status_code for answer in answers] == [201, 200]
    assert [item["document_id"] for item in listed] == [answers[0].json()["document_id"]]


async def test_the_documents_of_others_are_not_replaced(serve: Serve) -> None:
    """A source belongs to its user."""
    service = await serve(auth="keys")
    keys = await make_key(service, "alice"), await make_key(service, "bob")
    async with client(service, keys[0]) as alice, client(service, keys[1]) as bob:
        await alice.post("/ai/upload", json={"text": "Text of Alice.", "source": "/a"})
        await bob.post("/ai/upload", json={"text": "Text of Bob.", "source": "/a"})
        listed = (await alice.get("/ai/documents")).json()["items"]

    assert [item["title"] for item in listed] == ["Text of Alice."]


async def test_each_file_needs_a_source_or_none(serve: Serve) -> None:
    """Otherwise it would not be clear which is missing."""
    service = await serve()
    files = [("files", (f"{n}.txt", b"x")) for n in range(2)]
    response = await service.client.post("/ai/upload", files=files, data={"source": "/a"})

    assert is_problem(response, 422, "invalid_request")


async def test_files_of_an_archive_have_sources_in_it(serve: Serve) -> None:
    """So that a new version of the archive replaces them."""
    service = await serve()
    for text in ("old", "new"):
        response = await service.client.post(
            "/ai/upload",
            files={"files": ("all.zip", build_zip({"notes/a.md": text}))},
            data={"source": "/all.zip"},
        )
        assert response.status_code == 201

    (document,) = await list_documents(service, source="/all.zip/")
    assert (document["source"], document["characters"]) == ("/all.zip/notes/a.md", 3)
