"""Uploads of `kotae add`: files in batches, with progress; pages of the web are fetched here.

The service never fetches URLs. Requests to other hosts carry no credential.
"""

import hashlib
import io
import os
import platform
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import msgspec

from service.cli.client import Client, Response, fetch_url, raise_for_problem
from service.cli.output import show_progress
from service.core.errors import KotaeError, NotFound

BATCH_FILES, BATCH_BYTES = 20, 20_000_000  # per request, unless a single file is larger
PART_BYTES = 1_000_000  # of a file in an archive, read at a time
RETRIES_MAX = 10  # while the service is busy
RETRY_SECONDS_MAX = 30


class UploadItem(msgspec.Struct, frozen=True):
    """A file or a URL to upload."""

    source: str
    path: Path | None = None

    @classmethod
    def from_path(cls, path: Path) -> "UploadItem":
        """A file by its absolute path on this machine."""
        return cls(f"file://{platform.node()}{path.absolute().as_posix()}", path)

    @property
    def name(self) -> str:
        """The path or URL, for people."""
        return str(self.path) if self.path else self.source

    @property
    def size(self) -> int:
        """Bytes of the file; 0 if unknown."""
        try:
            return self.path.stat().st_size if self.path else 0
        except OSError:
            return 0

    def open(self) -> tuple[str, BinaryIO]:
        """The name and the content. Raises `OSError`, `KotaeError`."""
        if self.path:
            return self.path.name, self.path.open("rb")
        content, media_type = fetch_url(self.source)
        name = unquote(urlsplit(self.source).path.rstrip("/").rpartition("/")[2])
        name = name or urlsplit(self.source).netloc
        if media_type == "text/html" and not name.lower().endswith((".html", ".htm")):
            name += ".html"
        return name, io.BytesIO(content)

    def compute_hash(self) -> str:
        """SHA-256 of a file. Raises `OSError`."""
        assert self.path  # noqa: S101 - only files are synchronized
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def compute_member_hashes(self) -> set[str]:
        """SHA-256 of each file in a zip archive; empty for any other file. Raises `OSError`."""
        if self.path is None or not zipfile.is_zipfile(self.path):
            return set()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {
                    _hash_member(archive, entry)
                    for entry in archive.infolist()
                    if not entry.is_dir()
                }
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError):  # damaged, encrypted
            return set()


class Result(msgspec.Struct, frozen=True):
    """The document of an uploaded file, or the problem."""

    name: str
    source: str
    document: dict[str, Any] | None = None
    problem: str = ""


def read_arguments(arguments: Sequence[str]) -> Iterator[UploadItem]:
    """Yield the files and URLs that the arguments name. Raises `NotFound`, `OSError`."""
    for argument in arguments:
        if argument.startswith(("http://", "https://")):
            yield UploadItem(argument)
            continue
        path = Path(argument)
        if path.is_dir():
            yield from find_files(path)
        elif path.exists():
            yield UploadItem.from_path(path)
        else:
            raise NotFound(f"{argument}: no such file or directory")


def find_files(folder: Path) -> Iterator[UploadItem]:
    """Yield the files in a directory without hidden ones, in order. Raises `OSError`."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield UploadItem.from_path(path)


class Uploader:
    """Uploads files to one service."""

    def __init__(self, client: Client, *, shared: bool, tags: Sequence[str]) -> None:
        self.client = client
        self._shared = shared
        self._params: dict[str, Any] = {"partial": True, "shared": shared, "tag": list(tags)}

    def upload(self, items: Sequence[UploadItem]) -> list[Result]:
        """Upload files in batches, with a progress bar. Raises `KotaeError`, `TransportError`."""
        results: list[Result] = []
        with show_progress("Adding", len(items)) as advance:
            for batch in group_batches(items):
                results += self._upload_batch(batch)
                advance(len(batch))
        return [self._share(result) for result in results] if self._shared else results

    def delete(self, document: dict[str, Any]) -> None:
        """Delete a document that may be gone already. Raises `KotaeError`, `TransportError`."""
        response = self.client.delete(f"/ai/documents/{document['document_id']}")
        if response.status_code != 404:
            raise_for_problem(response)

    def _share(self, result: Result) -> Result:
        """Share a document that was stored before, unshared."""
        if result.document is None or result.document["shared"]:
            return result
        path = f"/ai/documents/{result.document['document_id']}"
        response = self.client.patch(path, json={"shared": True})
        raise_for_problem(response)
        return msgspec.structs.replace(result, document=result.document | {"shared": True})

    def _upload_batch(self, items: Sequence[UploadItem]) -> list[Result]:
        with ExitStack() as stack:
            opened: list[tuple[UploadItem, str, BinaryIO]] = []
            failed: list[Result] = []
            for item in items:
                try:
                    name, file = item.open()
                except (OSError, KotaeError) as error:
                    text = getattr(error, "strerror", None) or str(error)
                    failed.append(Result(item.name, item.source, problem=text))
                    continue
                opened.append((item, name, stack.enter_context(file)))
            return failed + (self._send(opened) if opened else [])

    def _send(self, opened: Sequence[tuple[UploadItem, str, BinaryIO]]) -> list[Result]:
        response = self._post(opened)
        if response.status_code == 413:  # a limit of this service
            if len(opened) > 1:
                half = len(opened) // 2
                return self._send(opened[:half]) + self._send(opened[half:])
            (item, _, _) = opened[0]
            return [Result(item.name, item.source, problem=response.json()["detail"])]
        raise_for_problem(response)
        return [_read_item(entry, opened) for entry in response.json()["items"]]

    def _post(self, opened: Sequence[tuple[UploadItem, str, BinaryIO]]) -> Response:
        for retries in range(RETRIES_MAX + 1):
            for _, _, file in opened:
                file.seek(0)
            response = self.client.post(
                "/ai/upload",
                params=self._params,
                data={"source": [item.source for item, _, _ in opened]},
                files=[("files", (name, file)) for _, name, file in opened],
            )
            if response.status_code != 503 or retries == RETRIES_MAX:
                break
            time.sleep(min(float(response.headers.get("retry-after", 1)), RETRY_SECONDS_MAX))
        return response


def _hash_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    with archive.open(entry) as file:
        digest = hashlib.sha256()
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def group_batches(items: Sequence[UploadItem]) -> Iterator[list[UploadItem]]:
    """Group files in order into batches for one request each."""
    batch: list[UploadItem] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH_FILES or size + item.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch


def _read_item(entry: dict[str, Any], opened: Sequence[tuple[UploadItem, str, BinaryIO]]) -> Result:
    """The result of a file, or of a file in an archive, whose path is appended."""
    item, name, _ = opened[entry["index"]]
    path = entry["name"].removeprefix(name)
    problem = entry.get("problem")
    return Result(
        item.name + path,
        item.source + path,
        entry.get("document"),
        problem["detail"] if problem else "",
    )
