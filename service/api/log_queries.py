"""What the routes over the logs have in common: whose rows they read, how fresh, and exports."""

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any, Literal, TypeVar

import anyio
import msgspec
from fastapi import Query
from fastapi.responses import StreamingResponse

from service.api.dependencies import Services
from service.api.schemas import schema_ref
from service.core.auth.principals import Principal
from service.core.encoding import to_json
from service.core.errors import OwnerUnavailable

T = TypeVar("T")
FRESH_SECONDS = (
    0.25  # how long a reader waits for the commit of answers that just ended; answers never wait
)
VALUES_MAX = 20  # of one filter
_MEDIA_TYPES = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
ExportFormat = Annotated[
    Literal["csv", "ndjson"] | None,
    Query(alias="format", description="Export as with `Accept`, which links cannot send"),
]
NOBODY = ""  # the id of no user
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def describe_exports(shape: type, description: str) -> dict[str, Any]:
    """An OpenAPI response: a page, or one of the exports."""
    response = schema_ref(shape, description)
    response["content"] |= {kind: {"schema": {"type": "string"}} for kind in _MEDIA_TYPES.values()}
    return response


def choose_export(accept: str, export_format: str | None) -> str | None:
    """The format of an export, `csv` or `ndjson`; None: a page was requested."""
    if export_format is not None:
        return export_format
    return next((name for name, kind in _MEDIA_TYPES.items() if kind in accept), None)


async def export_while_valid(
    services: Services, principal: Principal, pages: AsyncGenerator[list[T], None]
) -> AsyncGenerator[list[T], None]:
    """The pages of an export; it is cut off when the credential is revoked or expires."""
    async with aclosing(pages):
        async for items in pages:
            await services.authenticator.require_valid(principal)
            yield items


async def encode_ndjson(
    pages: AsyncIterator[list[T]], select: Callable[[T], object]
) -> AsyncGenerator[bytes, None]:
    """Each item as a line of JSON. `select`: what is exported of an item."""
    async for items in pages:
        yield b"".join(to_json(select(item)) + b"\n" for item in items)


async def encode_csv(
    pages: AsyncIterator[list[T]], columns: Sequence[str], list_cells: Callable[[T], list[object]]
) -> AsyncGenerator[bytes, None]:
    """A header, and a row for each item."""
    yield format_csv([columns])
    async for items in pages:
        yield format_csv([list_cells(item) for item in items])


def create_export(
    rows: AsyncIterator[bytes], name: str, export: str, *, vary: str = "Accept"
) -> StreamingResponse:
    """The response of an export. `export`: as `choose_export` returns it."""
    charset = "; charset=utf-8" if export == "csv" else ""
    headers = {"Content-Disposition": f'attachment; filename="{name}.{export}"', "Vary": vary}
    return StreamingResponse(rows, media_type=_MEDIA_TYPES[export] + charset, headers=headers)


async def wait_fresh(services: Services) -> None:
    """Wait up to `FRESH_SECONDS` for the commit of answers that ended before this request."""
    with suppress(TimeoutError, OwnerUnavailable), anyio.fail_after(FRESH_SECONDS):
        await services.queue.wait_committed()
        await services.answers.wait_others_written()


def select_users(principal: Principal, user_ids: list[str] | None) -> tuple[str, ...] | None:
    """The users whose rows match; None: all. Rows of other users match nothing."""
    if principal.visible_user_id is None:
        return to_tuple(user_ids)
    if user_ids is None or principal.visible_user_id in user_ids:
        return (principal.user_id,)
    return (NOBODY,)


def to_tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """The distinct values of a parameter."""
    return tuple(dict.fromkeys(values)) if values else None


def format_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV, without cells that a spreadsheet would interpret as formulas.

    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    out = io.StringIO()
    csv.writer(out).writerows([_format_cell(value) for value in row] for row in rows)
    return out.getvalue().encode()


def _format_cell(value: object) -> str:
    if value is None or value is msgspec.UNSET:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    return msgspec.json.encode(value).decode().strip('"')
