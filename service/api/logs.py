"""GET /ai/logs: pages, tails and exports of the request log."""

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from hashlib import blake2b
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from service.api import shapes
from service.api.dependencies import LogsPrincipal, Services, ServicesDep
from service.api.responses import has_etag, json_response
from service.api.schemas import (
    REFUSALS,
    Cursor,
    Endpoint,
    ModelName,
    Moment,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.core.accounting import log as request_log
from service.core.accounting.log import PAGE_MAX, LogFilter
from service.core.accounting.rows import OMITTED_IN_LISTS, LoggedAnswer
from service.core.auth.principals import Principal
from service.core.encoding import to_json
from service.core.errors import OwnerUnavailable
from service.core.records import DamagedAnswer, Status

router = APIRouter(prefix="/ai/logs", tags=["logs"])

FRESH_SECONDS = (
    0.25  # how long a reader waits for the commit of answers that just ended; answers never wait
)
NOBODY = ""  # the id of no user
_COLUMNS = [name for name in DamagedAnswer.__struct_fields__ if name not in OMITTED_IN_LISTS]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@router.get(
    "",
    responses={
        200: schema_ref(shapes.LogRowPage, "Rows, newest first"),
        304: {"description": "Not modified"},
        **REFUSALS,
    },
)
async def list_logs(
    services: ServicesDep,
    principal: LogsPrincipal,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Cursor = None,
    after: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Tail: rows committed after this answer, oldest first; continue with "
            "`next_cursor`",
        ),
    ] = None,
    user_id: Annotated[UserId | None, Query()] = None,
    endpoint: Annotated[Endpoint | None, Query()] = None,
    model: Annotated[ModelName | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
    since: Annotated[
        Moment | None, Query(description="Inclusive, RFC 3339; UTC without an offset")
    ] = None,
    until: Annotated[Moment | None, Query(description="Exclusive")] = None,
    accept: Annotated[str, Header()] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The log rows. `Accept: text/csv` or `application/x-ndjson` streams all matching rows."""
    log_filter = LogFilter(
        user_id=_select_user(principal, user_id),
        endpoint=endpoint,
        model=model,
        status=status,
        since=since,
        until=until,
    )
    await _wait_fresh(services)
    if "text/csv" in accept or "application/x-ndjson" in accept:
        pages = _export_while_valid(services, principal, log_filter)
        if "text/csv" in accept:
            return _create_export(_encode_csv(pages), "text/csv; charset=utf-8", "csv")
        return _create_export(_encode_ndjson(pages), "application/x-ndjson", "ndjson")
    async with services.database.read_session() as session:
        if after is not None:
            page = await request_log.read_tail(session, log_filter, limit=limit, after=after)
        else:
            page = await request_log.read_page(session, log_filter, limit=limit, cursor=cursor)
    return _add_etag(json_response(page), if_none_match)


@router.get(
    "/{answer_id}",
    responses={
        200: {
            "description": "The row",
            "content": {"application/json": {"schema": shapes.LOG_ROW_SCHEMA}},
        },
        **REFUSALS,
        **problem_schemas(_404="`not_found`: no answer has this id"),
    },
)
async def get_log(answer_id: str, services: ServicesDep, principal: LogsPrincipal) -> Response:
    """One log row."""
    await _wait_fresh(services)
    async with services.database.read_session() as session:
        row = await request_log.read_row(session, answer_id, user_id=principal.visible_user_id)
    return json_response(row)


async def _wait_fresh(services: Services) -> None:
    """Wait up to `FRESH_SECONDS` for the commit of answers that ended before this request."""
    services.database.health.require_available()
    with suppress(TimeoutError, OwnerUnavailable), anyio.fail_after(FRESH_SECONDS):
        await services.queue.wait_committed()
        await services.answers.wait_others_written()


def _select_user(principal: Principal, user_id: str | None) -> str | None:
    """The user whose rows match; None: all users. Rows of other users match nothing."""
    if principal.visible_user_id in {None, user_id}:
        return user_id
    return principal.user_id if user_id is None else NOBODY


def _add_etag(response: Response, if_none_match: str) -> Response:
    tag = f'"{blake2b(response.body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept"}
    if has_etag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


async def _export_while_valid(
    services: Services, principal: Principal, log_filter: LogFilter
) -> AsyncGenerator[list[LoggedAnswer], None]:
    """The pages of an export; it is cut off when the credential is revoked or expires."""
    async with aclosing(request_log.export_pages(services.database, log_filter)) as pages:
        async for items in pages:
            await services.authenticator.require_valid(principal)
            yield items


def _create_export(content: AsyncIterator[bytes], media_type: str, suffix: str) -> Response:
    return StreamingResponse(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="kotae-logs.{suffix}"'},
    )


async def _encode_ndjson(
    pages: AsyncGenerator[list[LoggedAnswer], None],
) -> AsyncGenerator[bytes, None]:
    async for items in pages:
        yield b"".join(to_json(item) + b"\n" for item in items)


async def _encode_csv(
    pages: AsyncGenerator[list[LoggedAnswer], None],
) -> AsyncGenerator[bytes, None]:
    yield _format_rows([list(_COLUMNS)])
    async for items in pages:
        yield _format_rows(
            [[_format_cell(getattr(item, column, None)) for column in _COLUMNS] for item in items]
        )


def _format_rows(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def _format_cell(value: object) -> str:
    """A cell that a spreadsheet does not interpret as a formula.

    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    return msgspec.json.encode(value).decode().strip('"')
