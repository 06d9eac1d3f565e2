"""GET /ai/logs: pages, tails and exports of the account."""

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from service.api.dependencies import Reading, Services, ServicesDep
from service.api.responses import json_response
from service.api.schemas import REFUSALS, problem_schemas, schema_ref
from service.core.accounting import log as request_log
from service.core.accounting.log import PAGE_MAX, LogFilter, LogPage
from service.core.encoding import to_json
from service.core.records import Answer

router = APIRouter(prefix="/ai/logs", tags=["logs"])

FRESH_SECONDS = 0.25  # how long a reader of the log waits for answers that have just ended; answers never wait for it
_COLUMNS = Answer.__struct_fields__
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@router.get(
    "",
    responses={
        200: schema_ref(LogPage, "Rows, newest first"),
        304: {"description": "As it was"},
        **REFUSALS,
    },
)
async def list_logs(
    services: ServicesDep,
    principal: Reading,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=64, description="`next_cursor` of the page before")
    ] = None,
    after: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Tail: rows recorded after this answer, oldest first; go on with `next_cursor`",
        ),
    ] = None,
    user_id: Annotated[str | None, Query(max_length=200)] = None,
    endpoint: Annotated[str | None, Query(max_length=50)] = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    status: Annotated[str | None, Query(max_length=20)] = None,
    since: Annotated[
        datetime | None, Query(description="Inclusive, RFC 3339; UTC if it names no offset")
    ] = None,
    until: Annotated[datetime | None, Query(description="Exclusive")] = None,
    accept: Annotated[str, Header()] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The account of every answer. `Accept: text/csv` or `application/x-ndjson` exports all rows that fit, streamed."""
    which = LogFilter(
        user_id=user_id if principal.is_admin else principal.user_id,
        endpoint=endpoint,
        model=model,
        status=status,
        since=_utc(since),
        until=_utc(until),
    )
    await _wait_fresh(services)
    if "text/csv" in accept:
        return _export(
            _csv(request_log.export_pages(services.database, which)),
            "text/csv; charset=utf-8",
            "csv",
        )
    if "application/x-ndjson" in accept:
        return _export(
            _ndjson(request_log.export_pages(services.database, which)),
            "application/x-ndjson",
            "ndjson",
        )
    async with services.database.read_session() as session:
        if after is not None:
            found = await request_log.read_tail(session, which, limit=limit, after=after)
        else:
            found = await request_log.read_page(session, which, limit=limit, cursor=cursor)
    return _tagged(json_response(found), if_none_match)


@router.get(
    "/{answer_id}",
    responses={
        200: schema_ref(Answer, "The row"),
        **REFUSALS,
        **problem_schemas(_404="`not_found`: no answer has this id"),
    },
)
async def get_log(answer_id: str, services: ServicesDep, principal: Reading) -> Response:
    """The account of one answer."""
    await _wait_fresh(services)
    async with services.database.read_session() as session:
        found = await request_log.read_row(session, answer_id, user_id=principal.visible_user_id)
    return json_response(found)


async def _wait_fresh(services: Services) -> None:
    """Let answers that ended before this request reach the database, unless it is slow today."""
    with suppress(TimeoutError), anyio.fail_after(FRESH_SECONDS):
        await services.queue.wait_committed()


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at and at.tzinfo is None else at


def _tagged(response: Response, if_none_match: str) -> Response:
    tag = f'"{blake2b(response.body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept"}
    if tag in (given.strip().removeprefix("W/") for given in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _export(content: AsyncIterator[bytes], media_type: str, suffix: str) -> Response:
    return StreamingResponse(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="kotae-logs.{suffix}"'},
    )


async def _ndjson(pages: AsyncGenerator[list[Answer], None]) -> AsyncGenerator[bytes, None]:
    async for items in pages:
        yield b"".join(to_json(item) + b"\n" for item in items)


async def _csv(pages: AsyncGenerator[list[Answer], None]) -> AsyncGenerator[bytes, None]:
    yield _csv_rows([list(_COLUMNS)])
    async for items in pages:
        yield _csv_rows([[_cell(getattr(item, column)) for column in _COLUMNS] for item in items])


def _csv_rows(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def _cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    return msgspec.json.encode(value).decode().strip('"')
