"""Documents: POST /seed, listing, deletion, and GET /ai/search."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.dependencies import (
    AdminDocumentsPrincipal,
    DocumentsPrincipal,
    ServicesDep,
)
from service.api.responses import json_response
from service.api.schemas import REFUSALS, DocumentIds, problem_schemas, schema_ref
from service.core.documents import library
from service.core.documents.library import Document, DocumentPage
from service.core.encoding import sanitize_text
from service.core.errors import Overloaded, TooLarge
from service.core.search.results import SearchResults

SEARCHES_WAITING_MAX = (
    200  # a few seconds of work; searches of answers are bounded by the number of answers
)

router = APIRouter(tags=["documents"])


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
    if services.retrieval.waiting_searches >= SEARCHES_WAITING_MAX:
        raise Overloaded(f"{SEARCHES_WAITING_MAX} searches are waiting")
    return json_response(
        await services.retrieval.search(
            sanitize_text(q), user_id=principal.visible_user_id, limit=limit, within=documents
        )
    )
