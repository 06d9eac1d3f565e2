"""GET /ai/audit-log, and the recording of reads of other users' texts."""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Response

from service.api.dependencies import AdminLogsPrincipal, Services, ServicesDep
from service.api.log_queries import (
    VALUES_MAX,
    ExportFormat,
    choose_export,
    create_export,
    describe_exports,
    encode_csv,
    encode_ndjson,
    export_while_valid,
    to_tuple,
)
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    Cursor,
    Moment,
    UserId,
    problem_schemas,
)
from service.core.audit_log import (
    PAGE_MAX,
    Action,
    AuditEntry,
    AuditFilter,
    AuditPage,
    export_entries,
    list_entries,
)
from service.core.auth.principals import Principal
from service.core.encoding import to_json

router = APIRouter(prefix="/ai/audit-log", tags=["logs"])

_COLUMNS = AuditEntry.__struct_fields__
_Values = Query(max_length=VALUES_MAX)


@router.get(
    "",
    responses={
        200: describe_exports(AuditPage, "Entries, newest first"),
        **REFUSALS,
        **problem_schemas(_400="`invalid_cursor`, `foreign_host`"),
    },
)
async def list_audit_log(
    services: ServicesDep,
    principal: AdminLogsPrincipal,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    cursor: Cursor = None,
    actor: Annotated[list[UserId] | None, _Values] = None,
    action: Annotated[list[Action] | None, _Values] = None,
    user_id: Annotated[list[UserId] | None, _Values] = None,
    since: Annotated[Moment | None, Query(description="Inclusive; as of `/ai/logs`")] = None,
    until: Annotated[Moment | None, Query(description="Exclusive")] = None,
    export_format: ExportFormat = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Who changed or read what. `Accept: text/csv` or `application/x-ndjson` exports all."""
    audit_filter = AuditFilter(
        actor=to_tuple(actor),
        action=to_tuple(action),
        user_id=to_tuple(user_id),
        since=since,
        until=until,
    )
    export = choose_export(accept, export_format)
    if export is not None:
        entries = export_entries(services.database, audit_filter)
        pages = export_while_valid(services, principal, entries)
        rows = (
            encode_csv(pages, _COLUMNS, _list_cells)
            if export == "csv"
            else encode_ndjson(pages, lambda entry: entry)
        )
        return create_export(rows, "kotae-audit-log", export)
    async with services.database.read_session() as session:
        page = await list_entries(session, audit_filter, limit=limit, cursor=cursor)
    return json_response(page)


async def record_read(
    services: Services,
    principal: Principal,
    action: Action,
    user_ids: Iterable[str | None],
    *,
    target_id: str | None = None,
) -> None:
    """Record that texts of other users are read, before they are sent.

    Users that are None, and the reader's own texts, are left out. Raises `DatabaseUnavailable`.
    """
    others = {user for user in user_ids if user is not None and user != principal.user_id}
    if others and principal.credential != "open":
        await services.reads.record(principal.actor, action, sorted(others), target_id=target_id)


async def record_read_of_all(services: Services, principal: Principal, action: Action) -> None:
    """Record that texts of all users are read or searched. Raises `DatabaseUnavailable`."""
    if principal.credential != "open":
        await services.reads.record(principal.actor, action, [None])


def _list_cells(item: AuditEntry) -> list[object]:
    """The values of an entry; its detail as JSON."""
    values = msgspec.structs.asdict(item)
    return [*(values | {"detail": to_json(item.detail).decode()}).values()]
