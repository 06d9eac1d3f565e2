"""Documents: POST /ai/upload, POST /seed, listing, deletion, and GET /ai/search."""

from collections.abc import Callable
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from service.api.dependencies import (
    AdminDocumentsPrincipal,
    DocumentsPrincipal,
    Services,
    ServicesDep,
)
from service.api.json_bodies import THREAD_BYTES_MIN, describe_errors, read_body, validate_json
from service.api.responses import json_response
from service.api.schemas import REFUSALS, DocumentIds, TextBody, problem_schemas, schema_ref
from service.api.shapes import UploadResult
from service.core.auth.principals import Principal
from service.core.documents import library
from service.core.documents.library import Document, DocumentPage, NewDocument
from service.core.encoding import sanitize_text
from service.core.errors import Forbidden, InvalidRequest, NotText, TooLarge
from service.core.search.results import SearchResults
from service.core.text import decoding
from service.core.text.decoding import split_parts
from service.core.text.json_object import decode_members

FIELDS_MAX, FIELD_BYTES_MAX = 100, 1_024  # form fields other than files; they are ignored

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
                        }
                    },
                    "required": ["files"],
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/TextBody"}},
        },
    }
}


@router.post(
    "/ai/upload",
    openapi_extra=_UPLOAD_BODY,
    responses={
        201: schema_ref(UploadResult, "The documents in `items`; of a single one also its fields"),
        200: schema_ref(UploadResult, "The same, if all texts were stored already"),
        **REFUSALS,
        **problem_schemas(_409="`documents_full`", _415="`not_text`: nothing was stored"),
    },
)
async def upload_documents(
    request: Request,
    services: ServicesDep,
    principal: DocumentsPrincipal,
    shared: Annotated[bool, Query(description="Visible to all users; requires an admin")] = False,
) -> Response:
    """Upload files as multipart, or `{title, text}` as JSON. All texts are stored, or none."""
    user_id = principal.user_id
    with services.uploads.hold(user_id), services.upload_budget.begin_body(user_id) as add_bytes:
        counted = Request(request.scope, _count_bytes(request.receive, add_bytes))
        return await _store_upload(counted, services, principal, shared=shared)


async def _store_upload(
    request: Request, services: Services, principal: Principal, *, shared: bool
) -> Response:
    if _is_form(request):
        new_documents = await _read_files(request, services)
    else:
        body = await _read_json(request, services, principal.user_id)
        new_documents, shared = (
            [NewDocument(title=body.title or "", text=body.text, encoding="utf-8")],
            shared or body.shared,
        )
    if shared and not principal.is_admin:
        raise Forbidden("sharing documents requires an admin")
    documents = await library.store_documents(
        services.database,
        services.settings,
        services.chunk_workers,
        new_documents,
        user_id=principal.user_id,
        shared=shared,
    )
    response_body = {"items": documents} | (
        msgspec.to_builtins(documents[0]) if len(documents) == 1 else {}
    )
    return json_response(
        response_body, 201 if any(document.created for document in documents) else 200
    )


@router.post("/seed", responses={200: schema_ref(DocumentPage, "The sample documents"), **REFUSALS})
async def seed_documents(services: ServicesDep, principal: AdminDocumentsPrincipal) -> Response:
    """Insert the sample documents, Japanese and English. Idempotent."""
    items = await library.seed_documents(
        services.database, services.settings, services.chunk_workers, user_id=principal.user_id
    )
    return json_response(DocumentPage(items=items, next_cursor=None))


@router.get(
    "/ai/documents",
    responses={200: schema_ref(DocumentPage, "Documents, newest first"), **REFUSALS},
)
async def list_documents(
    services: ServicesDep,
    principal: DocumentsPrincipal,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Documents, newest first."""
    async with services.database.read_session() as session:
        return json_response(
            await library.list_documents(
                session, user_id=principal.visible_user_id, limit=limit, cursor=cursor
            )
        )


@router.get(
    "/ai/documents/{document_id}",
    responses={
        200: schema_ref(Document, "The document with its `text`"),
        **REFUSALS,
        **problem_schemas(_404="`not_found`"),
    },
)
async def get_document(
    document_id: str, services: ServicesDep, principal: DocumentsPrincipal
) -> Response:
    """One document, with its text."""
    async with services.database.read_session() as session:
        return json_response(
            await library.get_document(session, document_id, user_id=principal.visible_user_id)
        )


@router.delete(
    "/ai/documents/{document_id}",
    status_code=204,
    responses={**REFUSALS, **problem_schemas(_404="`not_found`")},
    response_class=Response,
)
async def delete_document(
    document_id: str, services: ServicesDep, principal: DocumentsPrincipal
) -> Response:
    """Delete a document. New answers no longer use it."""
    await library.delete_document(services.database, document_id, user_id=principal.visible_user_id)
    return Response(status_code=204)


@router.get(
    "/ai/search",
    responses={
        200: schema_ref(SearchResults, "Ranked chunks, best first"),
        **REFUSALS,
    },
)
async def search_documents(
    services: ServicesDep,
    principal: DocumentsPrincipal,
    q: Annotated[str, Query(min_length=1)],
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
    documents: Annotated[DocumentIds | None, Query(description="Only in these documents")] = None,
) -> Response:
    """Ranked chunks for a question, with scores, matched terms and `answerable`."""
    if len(q) > services.settings.prompt_characters_max:
        raise TooLarge(
            f"the question is longer than {services.settings.prompt_characters_max} characters"
        )
    with services.searches.hold(principal.user_id):
        results = await services.retrieval.search(
            sanitize_text(q), user_id=principal.visible_user_id, limit=limit, within=documents
        )
    return json_response(results)


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


async def _read_files(request: Request, services: Services) -> list[NewDocument]:
    """Read every file before any is stored. Raises `TooLarge`, `NotText`, `InvalidRequest`."""
    files_max = services.limits.upload_files_max
    async with request.form(
        max_files=files_max + 1,
        max_fields=FIELDS_MAX,
        max_part_size=FIELD_BYTES_MAX,
    ) as form:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise InvalidRequest("the form contains no file")
        if len(files) > files_max:
            raise TooLarge(f"more than {files_max} files in one upload")
        return await anyio.to_thread.run_sync(
            _decode_files, files, services.settings.upload_file_bytes_max
        )


def _decode_files(files: list[UploadFile], bytes_max: int) -> list[NewDocument]:
    """Decode all files in one thread call; one call per file would cost more."""
    new_documents = []
    for file in files:
        name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        data = file.file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise TooLarge(f"{name!r} is larger than {bytes_max} bytes")
        try:
            text, encoding = decoding.decode_text(data)
        except NotText as error:
            raise NotText(f"{name!r}: {error.detail}") from error
        new_documents.append(NewDocument(title=name, text=text, encoding=encoding))
    return new_documents
