"""Documents: POST /seed, listing, deletion, and GET /ai/search."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.dependencies import (
    AdminDocumentsPrincipal,
    DocumentsPrincipal,
    ServicesDep,
)
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    DocumentBody,
    DocumentIds,
    Source,
    Tags,
    problem_schemas,
    schema_ref,
)
from service.core.documents import library
from service.core.documents.library import Document, DocumentFilters, DocumentPage
from service.core.encoding import sanitize_text
from service.core.errors import Forbidden, TooLarge
from service.core.search.results import SearchResults

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
) -> Response:
    """Documents, newest first."""
    async with services.database.read_session() as session:
        return json_response(
            await library.list_documents(
                session,
                user_id=principal.visible_user_id,
                limit=limit,
                cursor=cursor,
                filters=DocumentFilters(
                    owner=principal.user_id if mine else None, source=source, tags=tags or ()
                ),
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
    tags: Annotated[
        Tags | None,
        Query(alias="tag", min_length=1, description="Only in documents with one of these tags"),
    ] = None,
) -> Response:
    """Ranked chunks for a question, with scores, matched terms and `answerable`."""
    if len(q) > services.settings.prompt_characters_max:
        raise TooLarge(
            f"the question is longer than {services.settings.prompt_characters_max} characters"
        )
    if tags:
        documents = await library.list_tagged(
            services.database, tags, user_id=principal.visible_user_id, within=documents
        )
    with services.searches.hold(principal.user_id):
        results = await services.retrieval.search(
            sanitize_text(q), user_id=principal.visible_user_id, limit=limit, within=documents
        )
    return json_response(results)
