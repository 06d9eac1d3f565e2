"""`kotae documents`, `search`, `rm`, `export`: the documents of a running service."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from service.cli.client import (
    Client,
    Url,
    get_json,
    list_items,
    open_client,
    raise_for_problem,
    read_file_name,
    require_text,
)
from service.cli.output import (
    Json,
    make_printable,
    print_highlighted,
    print_json,
    print_table,
    show_progress,
)

Tag = Annotated[
    list[str] | None, typer.Option("--tag", help="Only documents with one of these tags.")
]
STEM_BYTES_MAX, SUFFIX_CHARACTERS_MAX = 150, 20  # file systems allow names of 255 bytes
_NOT_IN_NAME = re.compile(r"[^\w .,()+=@\[\]-]+")


def documents(
    url: Url = None,
    tag: Tag = None,
    mine: Annotated[bool, typer.Option("--mine", help="Without those shared by others.")] = False,
    as_json: Json = False,
) -> None:
    """List the documents of a running service, newest first."""
    with open_client(url) as client:
        items = list_items(client, "/ai/documents", mine=mine, tag=tag or [])
        if as_json:
            print_json(items)
            return
        print_table(
            ("ID", "TITLE", "FORMAT", "PAGES", "CHARACTERS", "DATE", "TAGS", "SHARED"),
            (
                (
                    item["document_id"],
                    item["title"],
                    item["format"],
                    item["pages"],
                    item["characters"],
                    item["date"] or item["created_at"][:10],
                    ",".join(item["tags"]),
                    "shared" if item["shared"] else "",
                )
                for item in items
            ),
            right=("PAGES", "CHARACTERS"),
            empty="no documents yet: kotae add FILE",
        )


def search(
    query: str,
    url: Url = None,
    limit: Annotated[int, typer.Option(min=1, max=50)] = 5,
    tag: Tag = None,
    as_json: Json = False,
) -> None:
    """Search the documents: the best passages, with the words of the query highlighted."""
    with open_client(url) as client:
        results = get_json(client, "/ai/search", q=require_text(query), limit=limit, tag=tag or [])
    if as_json:
        print_json(results["items"])
        return
    if "searched_for" in results:
        print(f"searched for: {make_printable(results['searched_for'])}", file=sys.stderr)
    if not results["items"]:
        print("nothing found", file=sys.stderr)
    for hit in results["items"]:
        page = f", p. {hit['page']}" if "page" in hit else ""
        print_highlighted(f"{hit['title']}{page}", " ".join(hit["text"].split()), hit["matched"])


def rm(
    document_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Delete documents by id (`kotae documents`)."""
    with open_client(url) as client:
        for document_id in document_ids:
            raise_for_problem(client.delete(f"/ai/documents/{document_id}"))
            if as_json:
                print_json([{"document_id": document_id, "deleted": True}])
            else:
                print(f"deleted: {document_id}")


def export(
    folder: Annotated[
        Path | None, typer.Argument(help="Directory for one text file per document.")
    ] = None,
    url: Url = None,
    tag: Tag = None,
    mine: Annotated[bool, typer.Option("--mine", help="Without those shared by others.")] = False,
    originals: Annotated[
        bool, typer.Option("--originals", help="Write uploaded files where they are stored.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the texts of documents to files, or as JSON to standard output."""
    if folder is None and (originals or not as_json):
        raise typer.BadParameter(f"a directory{'' if originals else ' or --json'} is required")
    with open_client(url) as client:
        items = list(list_items(client, "/ai/documents", mine=mine, tag=tag or []))
        with show_progress("Exporting", len(items)) as advance:
            for item in items:
                document = get_json(client, f"/ai/documents/{item['document_id']}")
                if folder is not None:
                    if originals and item["original_bytes"] is not None:
                        _write_original(folder, client, document)
                    else:
                        _write_text(folder, document)
                if as_json:
                    print_json([document])
                advance(1)
    if folder is not None and not as_json:
        print(f"{len(items)} documents written to {folder}")


def _write_text(folder: Path, document: dict[str, Any]) -> None:
    """Write a text to a new file, named by its title."""
    name = _clean_name(document["title"])
    name = name if name.lower().endswith((".md", ".txt")) else f"{name}.md"
    with _create_file(folder, name) as file:
        file.write(document["text"].encode())


def _write_original(folder: Path, client: Client, document: dict[str, Any]) -> None:
    """Write an uploaded file to a new file of its name. Raises `KotaeError`."""
    with client.stream("GET", f"/ai/documents/{document['document_id']}/original") as response:
        raise_for_problem(response)
        name = read_file_name(response.headers["content-disposition"])
        with _create_file(folder, _clean_name(name)) as file:
            for part in response.iter_bytes():
                file.write(part)


def _clean_name(name: str) -> str:
    """A name without characters that have a meaning in paths or shells; its type is kept."""
    path = Path(_NOT_IN_NAME.sub("_", name).strip(". ") or "document")
    suffix = path.suffix if len(path.suffix) <= SUFFIX_CHARACTERS_MAX else ""
    stem = path.name.removesuffix(suffix).encode()[:STEM_BYTES_MAX].decode(errors="ignore")
    return f"{stem.rstrip('. ')}{suffix}"


def _create_file(folder: Path, name: str) -> BinaryIO:
    """Create a file in a directory, with a number in its name if there is one of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    first, number = folder / name, 2
    path = first
    while True:
        try:
            return path.open("xb")
        except FileExistsError:
            path, number = first.with_stem(f"{first.stem} ({number})"), number + 1
