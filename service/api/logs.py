"""GET /ai/logs: pages, tails, ordered lists and exports of the request log."""

from collections.abc import AsyncIterator
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Header, Query, Response
from msgspec import UNSET

from service.api import shapes
from service.api.audit_log import record_read, record_read_of_all
from service.api.compression import accepts_gzip, compress_response, compress_stream
from service.api.dependencies import LogsPrincipal, Services, ServicesDep
from service.api.log_queries import (
    VALUES_MAX,
    ExportFormat,
    choose_export,
    create_export,
    describe_exports,
    encode_csv,
    encode_ndjson,
    export_while_valid,
    select_users,
    to_tuple,
    wait_fresh,
)
from service.api.query_parameters import refuse_parameter
from service.api.responses import has_etag, json_response
from service.api.schemas import (
    REFUSALS,
    Cursor,
    Endpoint,
    ModelName,
    Moment,
    UserId,
    problem_schemas,
)
from service.core.accounting.log import read_row
from service.core.accounting.log_pages import (
    PAGE_MAX,
    LogFilter,
    export_pages,
    list_statuses,
    read_page,
    read_tail,
    read_top,
)
from service.core.accounting.rows import OMITTED_IN_LISTS, LoggedAnswer
from service.core.audit_log import Action
from service.core.auth.principals import Principal
from service.core.records import DamagedAnswer, Passage, Status

router = APIRouter(prefix="/ai/logs", tags=["logs"])

WORDS_MAX = 8  # in `q`
_COLUMNS = [name for name in DamagedAnswer.__struct_fields__ if name not in OMITTED_IN_LISTS]
_TEXTS = ("title", "text")  # of sources
_TEXT_FIELDS = {"prompt", "response", "messages", "sources", "nearest"}
_Values = Query(max_length=VALUES_MAX)


@router.get(
    "",
    responses={
        200: describe_exports(shapes.LogRowPage, "Rows, newest first"),
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
    order: Annotated[
        Literal["-response_time_ms", "-estimated_cost", "-total_tokens"] | None,
        Query(description="Instead of the newest rows the largest since `since`, on one page"),
    ] = None,
    user_id: Annotated[list[UserId] | None, _Values] = None,
    endpoint: Annotated[list[Endpoint] | None, _Values] = None,
    model: Annotated[list[ModelName] | None, _Values] = None,
    status: Annotated[list[Status | Literal["error"]] | None, _Values] = None,
    since: Annotated[
        Moment | None,
        Query(description="Inclusive: RFC 3339, UTC without an offset; or before now: `-24h`"),
    ] = None,
    until: Annotated[Moment | None, Query(description="Exclusive")] = None,
    min_response_time_ms: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    q: Annotated[
        str | None,
        Query(max_length=200, description="Words in the prompt or the response; all must occur"),
    ] = None,
    fields: Annotated[
        str | None,
        Query(max_length=1000, description="The fields of a row, separated by commas"),
    ] = None,
    export_format: ExportFormat = None,
    accept: Annotated[str, Header()] = "",
    accept_encoding: Annotated[str, Header()] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The log rows. `Accept: text/csv` or `application/x-ndjson` streams all matching rows."""
    names = None if fields is None else _parse_fields(fields)
    log_filter = LogFilter(
        user_id=select_users(principal, user_id),
        endpoint=to_tuple(endpoint),
        model=to_tuple(model),
        status=None if status is None else list_statuses(status),
        since=since,
        until=until,
        min_response_time_ms=min_response_time_ms,
        words=_parse_words(q or ""),
    )
    export = choose_export(accept, export_format)
    if order is not None:
        _require_unordered(order, cursor=cursor, after=after, since=since, export=export)
    gzip = accepts_gzip(accept_encoding)
    await wait_fresh(services)
    if export is not None:
        await _record_list(services, principal, log_filter, Action.LOG_EXPORTED, names)
        rows = export_pages(services.database, log_filter)
        pages = export_while_valid(services, principal, rows)
        return _create_export(pages, export, names, gzip=gzip)
    async with services.database.read_session() as session:
        if order is not None:
            page = await read_top(session, log_filter, order=order.lstrip("-"), limit=limit)
        elif after is not None:
            page = await read_tail(session, log_filter, limit=limit, after=after)
        else:
            page = await read_page(session, log_filter, limit=limit, cursor=cursor)
    if any(item.user_id != principal.user_id for item in page.items):
        await _record_list(services, principal, log_filter, Action.LOG_READ, names)
    items = [_select_fields(item, names) for item in page.items]
    body = {"items": items, "next_cursor": page.next_cursor}
    return await _finish_list(json_response(body), if_none_match, gzip=gzip)


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
    await wait_fresh(services)
    async with services.database.read_session() as session:
        row = await read_row(session, answer_id, user_id=principal.visible_user_id)
    if row.asked_by != principal.user_id:
        await record_read(
            services, principal, Action.ANSWER_READ, [row.user_id], target_id=answer_id
        )
    return json_response(row)


async def _record_list(
    services: Services,
    principal: Principal,
    log_filter: LogFilter,
    action: Action,
    names: list[str] | None,
) -> None:
    """Record a list with texts of other users, or one that was searched for words in them."""
    if not log_filter.words and names is not None and _TEXT_FIELDS.isdisjoint(names):
        return
    if log_filter.user_id is None:
        await record_read_of_all(services, principal, action)
    else:
        await record_read(services, principal, action, log_filter.user_id)


def _parse_fields(text: str) -> list[str]:
    """The names of fields. Raises `RequestValidationError` for an unknown one."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in _COLUMNS:
            raise refuse_parameter("fields", f"{name!r} is not one of {', '.join(_COLUMNS)}")
    return names


def _parse_words(text: str) -> tuple[str, ...]:
    """The words of `q`. Raises `RequestValidationError` if there are too many."""
    words = tuple(dict.fromkeys(text.split()))
    if len(words) > WORDS_MAX or "\0" in text:
        raise refuse_parameter("q", f"must have at most {WORDS_MAX} words, without NUL characters")
    return words


def _require_unordered(
    order: str, *, cursor: str | None, after: str | None, since: datetime | None, export: str | None
) -> None:
    """Raise `RequestValidationError` for what an ordered list does not support."""
    if since is None:
        raise refuse_parameter("since", f"is required with order={order}")
    if cursor is not None or after is not None or export is not None:
        raise refuse_parameter("order", "excludes `cursor`, `after` and exports")


def _select_fields(item: LoggedAnswer, names: list[str] | None) -> object:
    """A row with these fields; by default with all, but without the texts of its sources."""
    if names is not None:
        values = {name: getattr(item, name, None) for name in names}
        values |= {"damaged": item.damaged} if isinstance(item, DamagedAnswer) else {}
        return {name: None if value is UNSET else value for name, value in values.items()}
    if isinstance(item, DamagedAnswer) or not item.sources:
        return item
    fields: dict[str, Any] = msgspec.structs.asdict(item)
    fields = {name: value for name, value in fields.items() if value is not UNSET}
    return fields | {"sources": [_omit_texts(source) for source in item.sources]}


def _omit_texts(source: Passage) -> dict[str, Any]:
    fields = msgspec.structs.asdict(source).items()
    return {name: value for name, value in fields if name not in _TEXTS and value is not UNSET}


async def _finish_list(response: Response, if_none_match: str, *, gzip: bool) -> Response:
    """Add the entity tag, compress, and respond with 304 if the client has the same list."""
    suffix = "-gzip" if gzip else ""
    tag = f'"{blake2b(response.body, digest_size=12).hexdigest()}{suffix}"'
    vary = "Accept, Accept-Encoding"
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": vary}
    if has_etag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    if gzip:
        await compress_response(response)
    return response


def _create_export(
    pages: AsyncIterator[list[LoggedAnswer]], export: str, names: list[str] | None, *, gzip: bool
) -> Response:
    if export == "csv":
        columns = names or _COLUMNS
        rows = encode_csv(
            pages, columns, lambda item: [getattr(item, name, None) for name in columns]
        )
    elif names is None:
        rows = encode_ndjson(pages, lambda item: item)
    else:
        rows = encode_ndjson(pages, lambda item: _select_fields(item, names))
    content = compress_stream(rows) if gzip else rows
    response = create_export(content, "kotae-logs", export, vary="Accept, Accept-Encoding")
    if gzip:
        response.headers["Content-Encoding"] = "gzip"
    return response
