"""`kotae documents`, `search`, `rm`, `export` and `stop`."""

import json
from pathlib import Path

import pytest

from service.core.errors import KotaeError
from tests.command import command, run
from tests.conftest import Serve, Service
from tests.fakes.files import build_pdf


async def start(serve: Serve) -> Service:
    """A service with a PDF and a text."""
    service = await serve()
    pdf = build_pdf(["The manual.", "The kettle is red."], title="../Guide")
    await service.client.post("/ai/upload?tag=a", files={"files": ("a.pdf", pdf)})
    await service.client.post("/ai/upload", json={"title": "T\x1b[31m", "text": "Pans are blue."})
    return service


async def test_documents_are_listed(serve: Serve) -> None:
    """Newest first, without characters that control the terminal; by tag."""
    service = await start(serve)
    output = await command("documents", "--url", service.url)
    tagged = await command("documents", "--tag", "A", "--json", "--url", service.url)

    assert [line.split()[1] for line in output.splitlines()[1:]] == ["T\ufffd[31m", "../Guide"]
    assert [json.loads(line)["tags"] for line in tagged.splitlines()] == [["a"]]


async def test_no_documents_is_a_hint(serve: Serve) -> None:
    """How to add some."""
    service = await serve()

    assert "kotae add FILE" in await command("documents", "--url", service.url)


async def test_search_prints_passages_with_pages(serve: Serve) -> None:
    """Or JSON."""
    service = await start(serve)
    output = await command("search", "red kettle", "--url", service.url)
    (line, *_) = (
        await command("search", "red kettle", "--json", "--url", service.url)
    ).splitlines()

    assert output.startswith("../Guide, p. 2\n")
    assert json.loads(line)["page"] == 2


async def test_documents_are_deleted(serve: Serve) -> None:
    """Several at once; an unknown id is an error."""
    service = await start(serve)
    items = (await service.client.get("/ai/documents")).json()["items"]
    ids = [item["document_id"] for item in items]
    await command("rm", *ids, "--url", service.url)

    assert (await service.client.get("/ai/documents")).json()["items"] == []
    with pytest.raises(KotaeError, match="Not found"):
        await command("rm", ids[0], "--url", service.url)


async def test_documents_are_exported_to_new_files(serve: Serve, tmp_path: Path) -> None:
    """In the directory, whatever their title; existing files stay."""
    service = await start(serve)
    folder = tmp_path / "out"
    for _ in range(2):
        await command("export", str(folder), "--url", service.url)

    assert sorted(path.name for path in folder.iterdir()) == [
        "T_[31m (2).md",
        "T_[31m.md",
        "_Guide (2).md",
        "_Guide.md",
    ]
    assert (folder / "T_[31m.md").read_text() == "Pans are blue."
    assert [path.name for path in tmp_path.glob("*.md")] == []


async def test_originals_are_exported_with_their_names(serve: Serve, tmp_path: Path) -> None:
    """Byte for byte, and the text of a document without a file."""
    service = await serve(originals_bytes_max=1_000_000)
    for number in (1, 2):
        files = {"files": ("表 1.txt", f"Kettle {number}.".encode("utf-16"))}
        await service.client.post("/ai/upload", files=files)
    await service.client.post("/ai/upload", json={"title": "Pans", "text": "Pans are blue."})
    folder = tmp_path / "out"
    await command("export", str(folder), "--originals", "--url", service.url)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "表 1.txt": "Kettle 2.".encode("utf-16"),
        "表 1 (2).txt": "Kettle 1.".encode("utf-16"),
        "Pans.md": b"Pans are blue.",
    }
    assert (await run("export", "--originals", "--json", "--url", service.url))[0] == 2


async def test_long_japanese_titles_are_cut_at_a_character(serve: Serve, tmp_path: Path) -> None:
    """File systems limit names in bytes."""
    service = await serve()
    await service.client.post("/ai/upload", json={"title": "あ" * 300, "text": "Pans are blue."})
    await command("export", str(tmp_path / "out"), "--url", service.url)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["あ" * 50 + ".md"]


async def test_documents_are_exported_as_json(serve: Serve) -> None:
    """With their texts."""
    service = await start(serve)
    lines = (await command("export", "--json", "--url", service.url)).splitlines()

    assert [json.loads(line)["text"] for line in lines] == [
        "Pans are blue.",
        "The manual.\n\f\nThe kettle is red.",
    ]
    assert (await run("export", "--url", service.url))[0] == 2


async def test_an_unknown_answer_cannot_be_stopped(serve: Serve) -> None:
    """`kotae stop` reports it."""
    service = await serve()
    with pytest.raises(KotaeError, match="Not found"):
        await command("stop", "01a22424-e928-7d25-ab7b-27f0c490a0c6", "--url", service.url)
