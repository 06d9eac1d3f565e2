"""Zip archives of files."""

import io

import pytest

from service.core.documents.archives import ArchiveBudget, open_archive
from service.core.documents.readers.archive import Archive
from service.core.errors import FileUnreadable, TooLarge
from tests.fakes.files import build_docx, build_zip


def open_zip(data: bytes) -> Archive:
    """An archive that must be one of files."""
    archive = open_archive(io.BytesIO(data))
    assert archive
    return archive


def test_visible_files_are_listed_with_their_paths() -> None:
    """Without directories and what operating systems add."""
    names = ["a.txt", "b/", "b/c.md", ".git/config", "__MACOSX/a.txt", "b/Thumbs.db"]
    files = ArchiveBudget(10, 100).list_files(open_zip(build_zip(dict.fromkeys(names, "x"))))

    assert [path for path, _ in files] == ["a.txt", "b/c.md"]


def test_names_in_cp932_are_decoded() -> None:
    """As Japanese Windows writes them, without saying so."""
    data = build_zip({"aaaa.txt": "x"}).replace(b"aaaa", "保証".encode("cp932"))

    assert ArchiveBudget(1, 1).list_files(open_zip(data))[0][0] == "保証.txt"


@pytest.mark.parametrize("data", [b"text", build_docx("")], ids=["text", "docx"])
def test_other_files_are_no_archives(data: bytes) -> None:
    """Office documents are zip archives as well."""
    assert open_archive(io.BytesIO(data)) is None


def test_a_damaged_archive_is_rejected() -> None:
    """Its directory is missing."""
    with pytest.raises(FileUnreadable):
        open_archive(io.BytesIO(b"PK\x03\x04" + bytes(100)))


@pytest.mark.parametrize(("files_max", "bytes_max"), [(3, 100), (4, 3)])
def test_archives_are_limited_together(files_max: int, bytes_max: int) -> None:
    """In the number of their files, and in their size."""
    budget, archive = ArchiveBudget(files_max, bytes_max), open_zip(build_zip({"a": "x", "b": "y"}))
    budget.list_files(archive)
    with pytest.raises(TooLarge):
        budget.list_files(archive)
