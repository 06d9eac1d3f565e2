"""Uploaded zip archives: the files in them, within limits."""

import zipfile
from typing import BinaryIO

from service.core.documents.readers.archive import Archive
from service.core.errors import TooLarge

_SIGNATURE = b"PK\x03\x04"
# Archives with one of these are documents.
_DOCUMENT_ENTRIES = frozenset({"[Content_Types].xml", "mimetype", "META-INF/container.xml"})
_HIDDEN_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


def open_archive(file: BinaryIO) -> Archive | None:
    """A zip archive of files; None for any other file. Raises `FileUnreadable`, `TooLarge`."""
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    archive = Archive(file)
    return None if archive.names & _DOCUMENT_ENTRIES else archive


class ArchiveBudget:
    """The limits of all archives of one upload."""

    def __init__(self, files_max: int, bytes_max: int) -> None:
        self._files_max, self._bytes_max = files_max, bytes_max
        self._files = self._bytes = 0

    def list_files(self, archive: Archive) -> list[tuple[str, zipfile.ZipInfo]]:
        """The files of an archive with their paths, without hidden ones. Raises `TooLarge`."""
        files = [(_decode_path(entry), entry) for entry in archive.entries if not entry.is_dir()]
        files = [(path, entry) for path, entry in files if not _is_hidden(path)]
        self._files += len(files)
        self._bytes += sum(entry.file_size for _, entry in files)
        if self._files > self._files_max:
            raise TooLarge(f"more than {self._files_max} files in the archives of one upload")
        if self._bytes > self._bytes_max:
            raise TooLarge(
                f"the archives of the upload expand to more than {self._bytes_max} bytes"
            )
        return files


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part in _HIDDEN_NAMES for part in path.split("/"))


def _decode_path(entry: zipfile.ZipInfo) -> str:
    """The path of an entry. Archives of Japanese systems contain CP932 without saying so."""
    if entry.flag_bits & 0x800:  # UTF-8
        return entry.filename
    raw = entry.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "cp932"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename
