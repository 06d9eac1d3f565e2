"""`kotae add`: files, directories, URLs, and synchronization."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import InvalidRequest, KotaeError
from service.core.limits import ServiceLimits
from tests.command import command, run
from tests.conftest import Serve, Service
from tests.fakes.files import build_pdf, build_zip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with ten texts, one of them in a directory, and a hidden file."""
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    for n in range(9):
        (folder / f"{n}.md").write_text(f"Note {n} of the keeper.")
    (folder / "sub" / "9.md").write_text("Note 9 of the keeper.")
    (folder / ".hidden").write_text("Hidden.")
    return folder


async def add(service: Service, *arguments: str) -> str:
    """Run the command successfully."""
    return await command("add", *arguments, "--url", service.url)


async def list_titles(service: Service) -> list[str]:
    """The titles of all documents."""
    response = await service.client.get("/ai/documents", params={"limit": 200})
    return sorted(item["title"] for item in response.json()["items"])


async def test_a_directory_is_added_without_hidden_files(serve: Serve, folder: Path) -> None:
    """With everything below it, in several requests, with tags."""
    service = await serve(limits=ServiceLimits(upload_files_max=3))
    output = await add(service, str(folder), "--tag", "Keeper", "--shared")
    items = (await service.client.get("/ai/documents")).json()["items"]

    assert "10 added, 0 already stored, 0 failed" in output
    assert await list_titles(service) == [f"{n}.md" for n in range(10)]
    assert {(*item["tags"], item["shared"]) for item in items} == {("keeper", True)}


async def test_files_that_fail_are_listed(serve: Serve, tmp_path: Path) -> None:
    """The others are added; the exit status tells."""
    service = await serve()
    (tmp_path / "scan.pdf").write_bytes(build_pdf([""]))
    (tmp_path / "all.zip").write_bytes(build_zip({"a.md": "Text.", "b.png": b"\x89PNG\r\n"}))
    code, output = await run(
        "add", str(tmp_path / "scan.pdf"), str(tmp_path / "all.zip"), "--url", service.url
    )

    assert code == 1
    assert "1 added, 0 already stored, 2 failed" in output
    assert "scan.pdf" in output
    assert "no text layer" in output
    assert "all.zip/b.png" in output
    assert await list_titles(service) == ["a.md"]


async def test_a_changed_file_replaces_its_document(serve: Serve, folder: Path) -> None:
    """Adding it again is enough."""
    service = await serve()
    await add(service, str(folder / "0.md"))
    (folder / "0.md").write_text("Changed.")
    await add(service, str(folder / "0.md"))
    (item,) = (await service.client.get("/ai/documents")).json()["items"]

    assert item["characters"] == len("Changed.")


async def test_results_are_printed_as_json(serve: Serve, folder: Path) -> None:
    """One object per file."""
    service = await serve()
    (item,) = map(json.loads, (await add(service, str(folder / "0.md"), "--json")).splitlines())

    assert item["document"]["title"] == "0.md"
    assert item["source"] == item["document"]["source"]


async def test_a_document_that_was_not_shared_is_shared(serve: Serve, folder: Path) -> None:
    """Although its text is stored already."""
    service = await serve()
    await add(service, str(folder / "0.md"))
    await add(service, str(folder / "0.md"), "--shared")
    (item,) = (await service.client.get("/ai/documents")).json()["items"]

    assert item["shared"]


async def test_synchronization_adds_changes_and_deletes(serve: Serve, folder: Path) -> None:
    """Only what came from the directory; a moved file keeps its document."""
    service = await serve()
    await service.client.post("/ai/upload", json={"title": "other", "text": "Not from a file."})
    await add(service, str(folder))
    moved = await find_document(service, "1.md")
    (folder / "0.md").write_text("Changed.")
    (folder / "1.md").rename(folder / "moved.md")
    (folder / "2.md").unlink()
    (folder / "new.md").write_text("New.")
    output = await add(service, "--sync", str(folder))
    again = await add(service, "--sync", str(folder))

    assert f"{folder}: 2 new, 1 changed, 7 unchanged, 2 gone" in output
    assert "0 new, 0 changed, 10 unchanged, 0 gone" in again
    titles = await list_titles(service)
    assert len(titles) == 11
    assert "2.md" not in titles
    assert {"other", "new.md"} < set(titles)
    assert (await find_document(service, "1.md"))["document_id"] == moved["document_id"]


async def test_an_unchanged_archive_is_not_uploaded_again(serve: Serve, folder: Path) -> None:
    """Its files are stored, the archive itself is not; a changed archive is uploaded."""
    service = await serve()
    archive = folder / "all.zip"
    archive.write_bytes(build_zip({"a.md": "Text.", "b/c.md": "Another text."}))
    first = await add(service, "--sync", str(folder))
    again = await add(service, "--sync", str(folder))
    archive.write_bytes(build_zip({"a.md": "Changed.", "b/c.md": "Another text."}))
    changed = await add(service, "--sync", str(folder))

    assert "11 new" in first
    assert "0 new, 0 changed, 11 unchanged, 0 gone" in again
    assert "1 new, 0 changed, 10 unchanged, 0 gone" in changed


async def find_document(service: Service, title: str) -> Any:
    """The document with this title."""
    items = (await service.client.get("/ai/documents")).json()["items"]
    return next(item for item in items if item["title"] == title)


async def test_more_than_a_fifth_is_not_deleted_without_being_told(
    serve: Serve, folder: Path
) -> None:
    """Nothing is changed at all then."""
    service = await serve()
    await add(service, str(folder))
    for n in range(3):
        (folder / f"{n}.md").unlink()
    (folder / "new.md").write_text("New.")
    with pytest.raises(InvalidRequest, match=r"3 of 10 documents .* pass --delete"):
        await add(service, "--sync", str(folder))
    before = await list_titles(service)
    await add(service, "--sync", str(folder), "--delete")

    assert before == [f"{n}.md" for n in range(10)]
    assert await list_titles(service) == [*(f"{n}.md" for n in range(3, 10)), "new.md"]


async def test_an_empty_directory_deletes_nothing(serve: Serve, folder: Path) -> None:
    """It may be a file system that is not mounted."""
    service = await serve()
    await add(service, str(folder))
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    with pytest.raises(InvalidRequest, match="empty or not mounted"):
        await add(service, "--sync", str(folder), "--delete")

    assert len(await list_titles(service)) == 10


async def test_a_dry_run_changes_nothing(serve: Serve, folder: Path) -> None:
    """It prints the plan."""
    service = await serve()
    output = await add(service, "--sync", str(folder), "--dry-run")

    assert "10 new" in output
    assert await list_titles(service) == []


@pytest.mark.parametrize("arguments", [("/nowhere",), ("--sync", "/nowhere")])
async def test_a_missing_path_is_one_line(serve: Serve, arguments: tuple[str, ...]) -> None:
    """Nothing is uploaded."""
    service = await serve()
    with pytest.raises(KotaeError, match="/nowhere"):
        await add(service, *arguments)
