"""Documents: POST /seed, listing, deletion, original files, and GET /ai/search."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from service.api.audit_log import record_read, record_read_of_all
from service.api.dependencies import (
    AdminDocumentsPrincipal,
    DocumentsPrincipal,
    Services,
    ServicesDep,
)
from service.api.json_bodies import BodyRoute
from service.api.log_queries import NOBODY, select_users
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    DocumentBody,
    DocumentIds,
    Source,
    Tags,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.core.audit_log import Action
from service.core.auth.principals import Principal
from service.core.documents import library
from service.core.documents.library import (
    Document,
    DocumentFilters,
    DocumentPage,
    StoredOriginal,
)
from service.core.encoding import sanitize_text
from service.core.errors import Forbidden, TooLarge
from service.core.search.results import SearchResults

# Whatever the file is: a browser must not show it as a page of this origin.
ORIGINAL_TYPE = "application/octet-stream"

router = APIRouter(tags=["documents"], route_class=BodyRoute)


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
    mine: Annotated[bool, Query(description="Only documents of the caller")] = False,
    source: Annotated[Source | None, Query(description="Only with a source beginning so")] = None,
    tags: Annotated[
        Tags | None, Query(alias="tag", min_length=1, description="Only with one of these tags")
    ] = None,
    user_id: Annotated[
        UserId | None, Query(description="Only of this user; for admins also of others")
    ] = None,
) -> Response:
    """Documents, newest first. Admins also see their owners."""
    async with services.database.read_session() as session:
        return json_response(
            await library.list_documents(
                session,
                user_id=principal.visible_user_id,
                limit=limit,
                cursor=cursor,
                filters=DocumentFilters(
                    owner=_select_owner(principal, mine=mine, user_id=user_id),
                    source=source,
                    tags=tags or (),
                ),
            )
        )


def _select_owner(principal: Principal, *, mine: bool, user_id: str | None) -> str | None:
    """The user whose documents are listed; None: all. Both parameters select their intersection."""
    if user_id is None:
        return principal.user_id if mine else None
    (owner,) = select_users(principal, [user_id]) or (user_id,)
    return owner if not mine or owner == principal.user_id else NOBODY


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
        document = await library.get_document(
            session, document_id, user_id=principal.visible_user_id
        )
        owner = await library.find_private_owner(session, document_id)
    await record_read(services, principal, Action.DOCUMENT_READ, [owner], target_id=document_id)
    return json_response(document)


@router.get(
    "/ai/documents/{document_id}/original",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The uploaded file, byte for byte",
            "content": {ORIGINAL_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **REFUSALS,
        **problem_schemas(_404="`not_found`: also if the file is not stored"),
    },
)
async def get_original(
    document_id: str, services: ServicesDep, principal: DocumentsPrincipal
) -> Response:
    """The file that a document was uploaded as, as a download."""
    original = await library.find_original(
        services.database, document_id, user_id=principal.visible_user_id
    )
    async with services.database.read_session() as session:
        owner = await library.find_private_owner(session, document_id)
    await record_read(services, principal, Action.DOCUMENT_READ, [owner], target_id=document_id)
    return StreamingResponse(
        _read_while_valid(services, principal, original),
        headers={
            "Content-Disposition": format_disposition(original.name),
            "Content-Length": str(original.size),
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
        },
        media_type=ORIGINAL_TYPE,
    )


async def _read_while_valid(
    services: Services, principal: Principal, original: StoredOriginal
) -> AsyncGenerator[bytes]:
    """The parts of a file; they end when the credential is revoked or expires."""
    async with aclosing(library.read_original(services.database, original)) as parts:
        async for part in parts:
            await services.authenticator.require_valid(principal)
            yield part


def format_disposition(name: str) -> str:
    """The header `Content-Disposition` of a download (RFC 6266).

    `filename` is for clients that do not know `filename*` (RFC 8187).
    """
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    parts = [f'attachment; filename="{plain or "document"}"']
    if plain != name:
        parts.append(f"filename*=UTF-8''{quote(name, safe='')}")
    return "; ".join(parts)


@router.patch(
    "/ai/documents/{document_id}",
    responses={
        200: schema_ref(Document, "The changed document"),
        **REFUSALS,
        **problem_schemas(_404="`not_found`"),
    },
)
async def update_document(
    document_id: str, body: DocumentBody, services: ServicesDep, principal: DocumentsPrincipal
) -> Response:
    """Change title, tags, date or visibility of a document."""
    if body.shared is not None and not principal.is_admin:
        raise Forbidden("sharing documents requires an admin")
    return json_response(
        await library.update_document(
            services.database,
            services.settings,
            services.chunk_workers,
            document_id,
            body.model_dump(exclude_unset=True),
            user_id=principal.visible_user_id,
            actor=principal.actor,
        )
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
    await library.delete_document(
        services.database,
        document_id,
        user_id=principal.visible_user_id,
        actor=principal.actor,
    )
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
    tags: Annotated[
        Tags | None,
        Query(alias="tag", min_length=1, description="Only in documents with one of these tags"),
    ] = None,
) -> Response:
    """Ranked chunks for a question, with scores, matched terms and `answerable`."""
    return json_response(
        await search_visible(services, principal, q, limit=limit, documents=documents, tags=tags)
    )


async def search_visible(
    services: Services,
    principal: Principal,
    question: str,
    *,
    limit: int,
    documents: list[str] | None,
    tags: list[str] | None,
) -> SearchResults:
    """Search the documents that the caller sees. Raises `TooLarge` and `Overloaded`."""
    if len(question) > services.settings.prompt_characters_max:
        raise TooLarge(
            f"the question is longer than {services.settings.prompt_characters_max} characters"
        )
    user_id = principal.visible_user_id
    if user_id is None:
        await record_read_of_all(services, principal, Action.DOCUMENT_SEARCHED)
    if tags:
        documents = await library.list_tagged(
            services.database, tags, user_id=user_id, within=documents
        )
    with services.searches.hold(principal.user_id):
        return await services.retrieval.search(
            sanitize_text(question), user_id=user_id, limit=limit, within=documents
        )
