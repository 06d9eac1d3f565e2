"""POST /ai/upload: files of all formats and zip archives of them, or a text as JSON.

Without `partial` all documents of an upload are stored, or none; with it, each file has a result.
"""

import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Annotated, Any, BinaryIO, Literal

import anyio
import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from service.api.dependencies import DocumentsPrincipal, Services, ServicesDep
from service.api.json_bodies import THREAD_BYTES_MIN, describe_errors, read_body, validate_json
from service.api.responses import json_response
from service.api.schemas import REFUSALS, Tags, TextBody, problem_schemas, schema_ref
from service.api.shapes import PartialUploadResult, UploadResult
from service.core.answering.answers import create_problem
from service.core.auth.principals import Principal
from service.core.documents import library
from service.core.documents.library import (
    ArchiveBudget,
    Document,
    FileReader,
    NewDocument,
    Original,
    open_archive,
)
from service.core.encoding import sanitize_text
from service.core.errors import Forbidden, InvalidRequest, KotaeError, TooLarge
from service.core.text.decoding import split_parts
from service.core.text.json_object import decode_members

FIELDS_MAX, FIELD_BYTES_MAX = 100, 1_024  # form fields: sources; others are ignored
HASHED_BYTES, SOURCE_CHARACTERS_MAX = 1_048_576, 1_000
FORM_FILES_MAX = 1_000  # files that are counted; with more, the form is not read to its end

router = APIRouter(tags=["documents"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                        },
                        "source": {
                            "type": "array",
                            "items": {"type": "string", "minLength": 1, "maxLength": 1000},
                            "description": "The path or URL of each file, in the same order. "
                            "What was uploaded from it before is replaced.",
                        },
                    },
                    "required": ["files"],
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/TextBody"}},
        },
    }
}


class NamedFile(msgspec.Struct, frozen=True):
    """A file of an upload: its position, its name with its path in an archive, and its content.

    `reopen` returns the content again, so that files in archives need not be kept in memory.
    """

    index: int
    name: str
    content: BinaryIO
    reopen: Callable[[], BinaryIO]
    source: str | None


class UploadOptions(msgspec.Struct, frozen=True):
    """What applies to all documents of an upload."""

    shared: bool
    partial: bool
    tags: list[str]
    replace_titles: bool
    keep_originals: bool


@router.post(
    "/ai/upload",
    openapi_extra=_UPLOAD_BODY,
    responses={
        201: schema_ref(UploadResult, "The documents in `items`; of a single one also its fields"),
        200: schema_ref(UploadResult, "The same, if all texts were stored already"),
        207: schema_ref(PartialUploadResult, "With `partial`: the result of each file"),
        **REFUSALS,
        **problem_schemas(
            _409="`documents_full`",
            _415="`not_text`, `file_unreadable`: nothing was stored",
        ),
    },
)
async def upload_documents(
    request: Request,
    services: ServicesDep,
    principal: DocumentsPrincipal,
    shared: Annotated[bool, Query(description="Visible to all users; requires an admin")] = False,
    partial: Annotated[
        bool, Query(description="Store the files that can be read, and return 207")
    ] = False,
    tags: Annotated[
        Tags | None, Query(alias="tag", min_length=1, description="Tags of the documents")
    ] = None,
    replace: Annotated[
        Literal["source", "title"],
        Query(description="`title`: also replace documents with the same title"),
    ] = "source",
) -> Response:
    """Upload files and zip archives as multipart, or `{title, text}` as JSON.

    All documents are stored, or none; with `partial`, each file has a result of its own.
    """
    if shared and not principal.is_admin:
        raise Forbidden("sharing documents requires an admin")
    options = UploadOptions(
        shared,
        partial,
        tags or [],
        replace_titles=replace == "title",
        keep_originals=services.settings.originals_bytes_max > 0,
    )
    user_id = principal.user_id
    with services.uploads.hold(user_id), services.upload_budget.begin_body(user_id) as add_bytes:
        counted = Request(request.scope, _count_bytes(request.receive, add_bytes))
        if _is_form(request):
            return await _upload_files(counted, services, principal, options)
        return await _upload_text(counted, services, principal, options)


async def _upload_text(
    request: Request, services: Services, principal: Principal, options: UploadOptions
) -> Response:
    body = await _read_json(request, services, principal.user_id)
    if body.shared and not principal.is_admin:
        raise Forbidden("sharing documents requires an admin")
    options = msgspec.structs.replace(options, shared=options.shared or body.shared)
    document = NewDocument(
        title=body.title or "",
        text=body.text,
        encoding="utf-8",
        source=body.source,
        tags=body.tags or options.tags,
        date=body.date,
    )
    return _respond(await _store(services, principal, [document], options))


async def _upload_files(
    request: Request, services: Services, principal: Principal, options: UploadOptions
) -> Response:
    async with _open_form(request, services.limits.upload_files_max) as files:
        bytes_max = services.settings.upload_file_bytes_max
        async with services.file_readers.open_reader(principal.user_id, bytes_max) as reader:
            documents = _read_documents(files, reader, services, options)
            if options.partial:
                return await _store_each(documents, services, principal, options, request)
            new_documents = [_raise_named(file, result) async for file, result in documents]
            return _respond(await _store(services, principal, new_documents, options))


async def _store(
    services: Services, principal: Principal, documents: list[NewDocument], options: UploadOptions
) -> list[Document]:
    return await library.store_documents(
        services.database,
        services.settings,
        services.chunk_workers,
        documents,
        user_id=principal.user_id,
        shared=options.shared,
        replace_titles=options.replace_titles,
    )


def _respond(documents: list[Document]) -> Response:
    single = msgspec.to_builtins(documents[0]) if len(documents) == 1 else {}
    status = 201 if any(document.created for document in documents) else 200
    return json_response({"items": documents} | single, status)


async def _store_each(
    documents: AsyncIterator[tuple[NamedFile, NewDocument | KotaeError]],
    services: Services,
    principal: Principal,
    options: UploadOptions,
    request: Request,
) -> Response:
    """Store each document in a transaction of its own."""
    items = []
    async for file, result in documents:
        item: dict[str, Any] = {"index": file.index, "name": file.name}
        try:
            if isinstance(result, KotaeError):
                raise result
            (document,) = await _store(services, principal, [result], options)
            item |= {"status": 201 if document.created else 200, "document": document}
        except KotaeError as error:
            problem = create_problem(error, str(request.scope.get("request_id", "")))
            item |= {"status": error.status, "problem": problem}
        items.append(item)
    return json_response({"items": items}, 207)


def _raise_named(file: NamedFile, result: NewDocument | KotaeError) -> NewDocument:
    """Return a document, or raise the error with the name of the file."""
    if isinstance(result, KotaeError):
        raise type(result)(f"{file.name!r}: {result.detail}") from result
    return result


@asynccontextmanager
async def _open_form(request: Request, files_max: int) -> AsyncIterator[list[NamedFile]]:
    """The files of a form with their sources. Raises `TooLarge`, `InvalidRequest`."""
    try:
        async with request.form(
            max_files=FORM_FILES_MAX, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES_MAX
        ) as form:
            files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            if not files:
                raise InvalidRequest("the form contains no file")
            if len(files) > files_max:
                raise TooLarge(f"{len(files)} files in one upload, more than {files_max}")
            sources = [value for value in form.getlist("source") if isinstance(value, str)]
            if len(sources) not in {0, len(files)} or not all(sources):
                raise InvalidRequest("the form must contain a `source` for each file, or none")
            named = enumerate(zip_longest(files, sources))
            yield [_name_file(n, file, source) for n, (file, source) in named]
    except HTTPException as error:
        if str(error.detail).startswith("Too many files"):
            raise TooLarge(f"more than {files_max} files in one upload") from error
        raise


def _name_file(index: int, upload: UploadFile, source: str | None) -> NamedFile:
    name = (upload.filename or "").replace("\\", "/").rpartition("/")[2]
    file = upload.file
    return NamedFile(
        index, name, file, functools.partial(_rewind, file), source and sanitize_text(source)
    )


def _rewind(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


async def _read_documents(
    files: list[NamedFile], reader: FileReader, services: Services, options: UploadOptions
) -> AsyncIterator[tuple[NamedFile, NewDocument | KotaeError]]:
    """Read all files and those in archives, one after the other. Errors are values."""
    budget = ArchiveBudget(
        services.limits.archive_files_max,
        services.limits.upload_files_max * services.settings.upload_file_bytes_max,
    )
    for whole in files:
        try:
            archive = await anyio.to_thread.run_sync(open_archive, whole.content)
            if archive is None:
                yield whole, await _read_document(whole, reader, options)
                continue
            for path, entry in budget.list_files(archive):
                reopen = functools.partial(archive.open_entry, entry)
                content = await anyio.to_thread.run_sync(reopen)
                source = whole.source and f"{whole.source}/{path}"[:SOURCE_CHARACTERS_MAX]
                file = NamedFile(whole.index, f"{whole.name}/{path}", content, reopen, source)
                yield file, await _read_document(file, reader, options)
        except KotaeError as error:
            yield whole, error


async def _read_document(
    file: NamedFile, reader: FileReader, options: UploadOptions
) -> NewDocument | KotaeError:
    name = file.name.rpartition("/")[2]
    try:
        extracted = await reader.read_file(file.content, name)
    except KotaeError as error:
        return error
    file_hash, size = await anyio.to_thread.run_sync(_hash_file, file.content)
    return NewDocument(
        title=extracted.title or name,
        text=extracted.text,
        encoding=extracted.encoding,
        format=extracted.format,
        date=extracted.date,
        has_pages=extracted.has_pages,
        source=file.source,
        file_hash=file_hash,
        tags=options.tags,
        original=Original(name, size, file_hash, file.reopen) if options.keep_originals else None,
    )


def _hash_file(file: BinaryIO) -> tuple[str, int]:
    """The SHA-256 and the size of a file."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(HASHED_BYTES):
        digest.update(part)
    return digest.hexdigest(), file.tell()


def _count_bytes(receive: Receive, add_bytes: Callable[[int], None]) -> Receive:
    """A `receive` that passes the size of each part of the body on before it returns the part."""

    async def receive_counted() -> Message:
        message = await receive()
        add_bytes(len(message.get("body", b"")))
        return message

    return receive_counted


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _read_json(request: Request, services: Services, user_id: str) -> TextBody:
    """The text of a JSON body. Raises `RequestValidationError`, `InvalidRequest`, `TooLarge`."""
    raw, bytes_max = await read_body(request, user_id), services.settings.upload_file_bytes_max
    if len(raw) < THREAD_BYTES_MIN:
        return _decode_text(raw, bytes_max)
    return await anyio.to_thread.run_sync(_decode_text, raw, bytes_max)


def _decode_text(raw: bytes, bytes_max: int) -> TextBody:
    body = validate_json(raw, TextBody) if len(raw) < THREAD_BYTES_MIN else _decode_large_text(raw)
    if (
        len(raw) > bytes_max
        and sum(len(part.encode("utf-8", "surrogatepass")) for part in split_parts(body.text))
        > bytes_max
    ):
        raise TooLarge(f"the text is larger than {bytes_max} bytes")
    return body


def _decode_large_text(raw: bytes) -> TextBody:
    """Like `validate_json`, in parts, with at most one error, and without copying the text."""
    try:
        members = decode_members(raw, TextBody.model_fields)
    except ValueError as error:
        raise RequestValidationError([{"loc": ("body",), "msg": str(error)}]) from None
    text = members.get("text")
    if isinstance(text, str):
        members["text"] = "x" if any(not part.isspace() for part in split_parts(text)) else ""
    try:
        body = TextBody.model_validate(members)
    except ValidationError as error:
        raise RequestValidationError(describe_errors(error)) from None
    return body.model_copy(update={"text": text})
