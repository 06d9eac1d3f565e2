"""What answers are drawn from: POST /ai/upload, POST /seed, the documents, and the search in them."""

from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from service.api.dependencies import AdminDocumenting, Documenting, Services, ServicesDep
from service.api.json_bodies import THREAD_BYTES_MIN, describe_errors, read_body, validate_json
from service.api.responses import json_response
from service.api.schemas import REFUSALS, DocumentIds, TextBody, problem_schemas, schema_ref
from service.core.documents import library
from service.core.documents.library import Document, DocumentPage, NewDocument
from service.core.encoding import replace_surrogates
from service.core.errors import Forbidden, InvalidRequest, NotText, Overloaded, TooLarge
from service.core.search.results import SearchResults
from service.core.text import decoding
from service.core.text.decoding import split_parts
from service.core.text.json_object import decode_members

FIELDS_MAX, FIELD_BYTES_MAX = 100, 1_024  # of a form, besides its files; none is used
SEARCHES_WAITING_MAX = (
    200  # a few seconds' worth; those of answers are as many as there may be answers
)

router = APIRouter(tags=["documents"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {"schema": TextBody.model_json_schema()},
        },
    }
}


@router.post(
    "/ai/upload",
    openapi_extra=_UPLOAD_BODY,
    responses={
        201: schema_ref(
            Document,
            "The document; `items` has it too, and all of them when several files were sent",
        ),
        200: schema_ref(Document, "The same, when every text was known already"),
        **REFUSALS,
        **problem_schemas(
            _409="`documents_full`", _415="`not_text`: nothing of this upload was stored"
        ),
    },
)
async def upload_documents(
    request: Request,
    services: ServicesDep,
    principal: Documenting,
    shared: Annotated[bool, Query(description="Context for everyone; for admins")] = False,
) -> Response:
    """Give texts: files as multipart, or `{title, text}` as JSON. All of them are stored, or none."""
    if _is_form(request):
        given = await _given_files(request, services)
    else:
        body = await _given_json(request, services)
        given, shared = (
            [NewDocument(title=body.title or "", text=body.text, encoding="utf-8")],
            shared or body.shared,
        )
    if shared and not principal.is_admin:
        raise Forbidden("only admins share documents")
    stored = await library.store_documents(
        services.database,
        services.settings,
        services.chunk_workers,
        given,
        user_id=principal.user_id,
        shared=shared,
    )
    told = {"items": stored} | (msgspec.to_builtins(stored[0]) if len(stored) == 1 else {})
    return json_response(told, 201 if any(document.created for document in stored) else 200)


@router.post("/seed", responses={200: schema_ref(DocumentPage, "The sample documents"), **REFUSALS})
async def seed_documents(services: ServicesDep, principal: AdminDocumenting) -> Response:
    """Insert the sample documents, Japanese and English. Asking twice changes nothing."""
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
    principal: Documenting,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """What has been given."""
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
async def get_document(document_id: str, services: ServicesDep, principal: Documenting) -> Response:
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
    document_id: str, services: ServicesDep, principal: Documenting
) -> Response:
    """Delete a document: from now on no answer is drawn from it."""
    await library.delete_document(services.database, document_id, user_id=principal.visible_user_id)
    return Response(status_code=204)


@router.get(
    "/ai/search",
    responses={
        200: schema_ref(
            SearchResults, "The chunks that a question would be answered from, best first"
        ),
        **REFUSALS,
    },
)
async def search_documents(
    services: ServicesDep,
    principal: Documenting,
    q: Annotated[str, Query(min_length=1)],
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
    documents: Annotated[DocumentIds | None, Query(description="Of these alone")] = None,
) -> Response:
    """Look into retrieval: ranked chunks with their scores and matched terms, and whether they would be answered from."""
    if len(q) > services.settings.prompt_characters_max:
        raise TooLarge(
            f"the question is longer than {services.settings.prompt_characters_max} characters"
        )
    if services.retrieval.waiting_searches >= SEARCHES_WAITING_MAX:
        raise Overloaded(f"{SEARCHES_WAITING_MAX} searches wait already")
    return json_response(
        await services.retrieval.search(
            replace_surrogates(q), user_id=principal.visible_user_id, limit=limit, within=documents
        )
    )


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _given_json(request: Request, services: Services) -> TextBody:
    """The text of a JSON body. Raises `RequestValidationError`, `InvalidRequest`, `TooLarge`."""
    raw, bytes_max = await read_body(request), services.settings.upload_file_bytes_max
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
    """As `validate_json`, in parts, and with one error at most. The model does not see the text: it would copy it."""
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


async def _given_files(request: Request, services: Services) -> list[NewDocument]:
    """Read every file before any is stored. Raises `TooLarge`, `NotText`, `InvalidRequest`."""
    files_max = services.limits.upload_files_max
    async with request.form(
        max_files=files_max + 1,
        max_fields=FIELDS_MAX,
        max_part_size=FIELD_BYTES_MAX,
    ) as form:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise InvalidRequest("the form has no file")
        if len(files) > files_max:
            raise TooLarge(f"more than {files_max} files in one upload")
        return await anyio.to_thread.run_sync(_read, files, services.settings.upload_file_bytes_max)


def _read(files: list[UploadFile], bytes_max: int) -> list[NewDocument]:
    """The texts of all files, in one visit of a thread, which costs as much as several small ones."""
    given = []
    for file in files:
        name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        data = file.file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise TooLarge(f"{name!r} is larger than {bytes_max} bytes")
        try:
            text, encoding = decoding.decode_text(data)
        except NotText as error:
            raise NotText(f"{name!r}: {error.detail}") from error
        given.append(NewDocument(title=name, text=text, encoding=encoding))
    return given
