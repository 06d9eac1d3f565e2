"""`kotae add`: upload files, directories and URLs, and keep a directory in sync."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.client import Url, list_items, open_client
from service.cli.output import Json, print_json, print_table
from service.cli.uploading import Result, Uploader, UploadItem, find_files, read_arguments
from service.core.errors import InvalidRequest

DELETED_SHARE_MAX = 0.2  # of the synchronized documents, without `--delete`


def add(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, directories (with everything in them), http(s) URLs."),
    ],
    url: Url = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Visible to all users; for admins.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of the documents; repeatable.")] = None,
    sync: Annotated[
        bool,
        typer.Option("--sync", help="Also delete documents whose files are gone from a directory."),
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Let --sync delete more than a fifth of them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan of --sync, change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add documents to a running service. A changed file or page replaces its earlier version."""
    with open_client(url) as client:
        uploader = Uploader(client, shared=shared, tags=tag or [])
        if sync:
            results = _synchronize(uploader, paths, delete=delete, dry_run=dry_run)
        else:
            results = uploader.upload(list(read_arguments(paths)))
    if not dry_run:
        _report(results, as_json=as_json)
    if any(result.problem for result in results):
        raise typer.Exit(1)


class Plan:
    """What a synchronization of one directory changes."""

    def __init__(self, folder: Path, files: Sequence[UploadItem], documents: list[Any]) -> None:
        sources = {file.source for file in files}
        stored = {document["source"]: document for document in documents}
        # A text that is in several files is one document, with the source of one of them.
        hashes = {
            document["file_hash"]
            for document in documents
            if _is_present(document["source"], sources)
        }
        self.folder, self.files = folder, files
        self.documents = documents
        self.changed = [
            file
            for file in files
            if file.source in stored and stored[file.source]["file_hash"] != file.compute_hash()
        ]
        self.new = [
            file for file in files if file.source not in stored and not _is_stored(file, hashes)
        ]
        self.gone = [
            document for document in documents if not _is_present(document["source"], sources)
        ]

    def print(self) -> None:
        """Print the plan on standard error."""
        unchanged = len(self.files) - len(self.new) - len(self.changed)
        print(
            f"{self.folder}: {len(self.new)} new, {len(self.changed)} changed, {unchanged} "
            f"unchanged, {len(self.gone)} gone",
            file=sys.stderr,
        )
        for document in self.gone:
            print(f"  gone: {document['source']}", file=sys.stderr)

    def check_deletions(self, *, delete: bool) -> None:
        """Raise `InvalidRequest` if it deletes more than a fifth without `--delete`."""
        if len(self.gone) > DELETED_SHARE_MAX * len(self.documents) and not delete:
            raise InvalidRequest(
                f"{len(self.gone)} of {len(self.documents)} documents from {self.folder} would be "
                "deleted, more than a fifth: nothing was changed; pass --delete if this is right"
            )


def _is_stored(file: UploadItem, hashes: set[str]) -> bool:
    """Whether a file, or each file in it, is stored under another source."""
    if file.compute_hash() in hashes:
        return True
    members = file.compute_member_hashes()
    return bool(members) and members <= hashes


def _is_present(source: str, sources: set[str]) -> bool:
    """Whether a source is a file, or in an archive that is one."""
    return source in sources or any(source.startswith(f"{file}/") for file in sources)


def _synchronize(
    uploader: Uploader, paths: Sequence[str], *, delete: bool, dry_run: bool
) -> list[Result]:
    plans = [_plan(uploader, path) for path in paths]
    for plan in plans:
        plan.print()
    for plan in plans:
        plan.check_deletions(delete=delete)
    if dry_run:
        return []
    results = uploader.upload([file for plan in plans for file in (*plan.new, *plan.changed)])
    uploaded_ids = {result.document["document_id"] for result in results if result.document}
    for document in (document for plan in plans for document in plan.gone):
        if document["document_id"] not in uploaded_ids:  # else its file was moved
            uploader.delete(document)
            print(f"deleted: {document['source']}", file=sys.stderr)
    return results


def _plan(uploader: Uploader, path: str) -> Plan:
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise InvalidRequest(f"--sync needs a directory, which {path} is not")
    files = list(find_files(folder))
    prefix = UploadItem.from_path(folder).source.rstrip("/") + "/"
    documents = list(list_items(uploader.client, "/ai/documents", mine=True, source=prefix))
    if not files and documents:
        raise InvalidRequest(f"{path} is empty or not mounted: nothing was changed")
    return Plan(folder, files, documents)


def _report(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        print_json(_describe(result) for result in results)
        return
    stored = [result.document for result in results if result.document]
    created = sum(document["created"] for document in stored)
    failed = [result for result in results if result.problem]
    print(f"{created} added, {len(stored) - created} already stored, {len(failed)} failed")
    if failed:
        rows = ((result.name, result.problem) for result in failed)
        print_table(("FILE", "PROBLEM"), rows, empty="")


def _describe(result: Result) -> dict[str, Any]:
    outcome = {"document": result.document} if result.document else {"problem": result.problem}
    return {"name": result.name, "source": result.source} | outcome
