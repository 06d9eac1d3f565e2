"""Uploads: formats, encodings, several files, archives, partial results, limits."""

import pytest

from service.core.limits import ServiceLimits
from tests.conftest import Serve
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
        add_bytes(95_000)
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
