"""What the routes over the log have in common: whose rows they read, how fresh, and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import anyio
import msgspec
from fastapi import Query

from service.api.dependencies import Services
from service.api.schemas import schema_ref
from service.core.auth.principals import Principal
from service.core.errors import OwnerUnavailable

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
