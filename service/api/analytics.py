"""GET /ai/analytics: usage, cost and latency by group and time bucket; its exports."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Header, Query, Response

from service.api import shapes
from service.api.dependencies import AdminLogsPrincipal, LogsPrincipal, Services, ServicesDep
from service.api.log_queries import VALUES_MAX, format_csv, select_users, wait_fresh
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    Endpoint,
    LocalMoment,
    ModelName,
    UserId,
    schema_ref,
)
from service.core.accounting.analytics import (
    METRICS,
    ORDERS,
    AnalyticsQuery,
    Bucket,
    GroupResult,
    compute_analytics,
    list_buckets,
)
from service.core.accounting.focus import FOCUS_COLUMNS, FOCUS_GROUPS, list_focus_rows
from service.core.accounting.log_pages import list_statuses
from service.core.accounting.reconciliation import describe_sums, reconcile_sums
from service.core.accounting.rollups import DIMENSIONS, LATENCIES
from service.core.auth.principals import Principal
from service.core.encoding import utc_now
from service.core.errors import InvalidInterval
from service.core.records import Status

router = APIRouter(prefix="/ai/analytics", tags=["analytics"])

DEFAULT_DAYS = 30
RESULTS_MAX = 1000
_DEFAULT_METRICS = ["answers", "errors", "total_tokens", "cost", "response_time_ms"]
_Values = Query(max_length=VALUES_MAX)


class Interval:
    """The parameters of an interval: `since`, `until` and `timezone`."""

    def __init__(
        self,
        since: Annotated[
            LocalMoment | None,
            Query(description="Inclusive; default: 30 days ago. Or before now, as `-24h`"),
        ] = None,
        until: Annotated[LocalMoment | None, Query(description="Exclusive; default: now")] = None,
        timezone: Annotated[
            str, Query(max_length=100, description="Of times without an offset, and of buckets")
        ] = "UTC",
    ) -> None:
        try:
            self.zone = ZoneInfo(timezone)
        except (KeyError, OSError, ValueError):  # unknown, or not a name
            raise InvalidInterval(f"unknown time zone {timezone!r}") from None
        now = utc_now()
        self.since = self._to_utc(since) or now - timedelta(days=DEFAULT_DAYS)
        self.until = self._to_utc(until) or now + timedelta(milliseconds=1)

    def _to_utc(self, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        return moment.replace(tzinfo=moment.tzinfo or self.zone).astimezone(UTC)


IntervalDep = Annotated[Interval, Depends()]


class Filters:
    """The parameters that select rows by their dimensions."""

    def __init__(
        self,
        principal: LogsPrincipal,
        user_id: Annotated[list[UserId] | None, _Values] = None,
        key_id: Annotated[list[UserId] | None, _Values] = None,
        model: Annotated[list[ModelName] | None, _Values] = None,
        endpoint: Annotated[list[Endpoint] | None, _Values] = None,
        status: Annotated[list[Status | Literal["error"]] | None, _Values] = None,
    ) -> None:
        values = {
            "user_id": select_users(principal, user_id),
            "key_id": key_id,
            "model": model,
            "endpoint": endpoint,
            "status": status and list_statuses(status),
        }
        self.values = {name: tuple(listed) for name, listed in values.items() if listed}


FiltersDep = Annotated[Filters, Depends()]


@router.get(
    "",
    responses={200: schema_ref(shapes.AnalyticsPage, "Results by time bucket"), **REFUSALS},
)
async def get_analytics(
    services: ServicesDep,
    principal: LogsPrincipal,
    interval: IntervalDep,
    filters: FiltersDep,
    metrics: Annotated[list[Literal[*METRICS]] | None, Query()] = None,  # type: ignore[valid-type]
    group_by: Annotated[list[Literal[*DIMENSIONS]] | None, Query()] = None,  # type: ignore[valid-type]
    bucket: Annotated[Literal["hour", "day", "month"] | None, Query()] = None,
    order: Annotated[
        Literal[*(f"-{name}" for name in ORDERS)],  # type: ignore[valid-type]
        Query(description="Of the groups within a bucket"),
    ] = "-cost",
    limit: Annotated[int, Query(ge=1, le=RESULTS_MAX)] = 100,
    cursor: Annotated[int, Query(ge=0, description="`next_cursor` of the previous page")] = 0,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Sums over the log. `Accept: text/csv` responds with all results as CSV."""
    query = AnalyticsQuery(
        metrics=tuple(dict.fromkeys(metrics or _DEFAULT_METRICS)),
        group_by=tuple(dict.fromkeys(group_by or ())),
        buckets=tuple(list_buckets(interval.since, interval.until, bucket, interval.zone)),
        order=order.lstrip("-"),
        filters=filters.values,
    )
    results = await _compute(services, principal, query)
    if "text/csv" in accept:
        return _create_csv(_flatten(results, interval.zone), "kotae-analytics.csv")
    page = results[cursor : cursor + limit]
    return json_response(
        {
            "timezone": interval.zone.key,
            "items": [
                {
                    "start_time": time_bucket.start.astimezone(interval.zone),
                    "end_time": time_bucket.end.astimezone(interval.zone),
                    "results": [result.values for result in group],
                }
                for time_bucket, group in groupby(page, key=_get_bucket)
            ],
            "next_cursor": cursor + limit if len(results) > cursor + limit else None,
        }
    )


@router.get(
    "/focus",
    response_class=Response,
    responses={200: {"description": "CSV", "content": {"text/csv": {}}}, **REFUSALS},
)
async def export_focus(
    services: ServicesDep, principal: LogsPrincipal, interval: IntervalDep, filters: FiltersDep
) -> Response:
    """Costs by day, user, key, model and endpoint in the format of FOCUS 1.2 (CSV)."""
    query = AnalyticsQuery(
        metrics=("answers", "total_tokens", "cost"),
        group_by=FOCUS_GROUPS,
        buckets=tuple(list_buckets(interval.since, interval.until, "day", interval.zone)),
        order="cost",
        filters=filters.values,
    )
    results = await _compute(services, principal, query)
    return _create_csv(list_focus_rows(results), "kotae-focus.csv", FOCUS_COLUMNS)


@router.get(
    "/check",
    responses={200: schema_ref(shapes.Reconciliation, "The sums of both"), **REFUSALS},
)
async def check_sums(
    services: ServicesDep, principal: AdminLogsPrincipal, interval: IntervalDep
) -> Response:
    """Compare the stored sums of an interval with the sums over its rows, in one snapshot."""
    async with services.analytics.turn(principal.user_id):
        await wait_fresh(services)
        result = await services.database.run_blocking_read(
            partial(reconcile_sums, since=interval.since, until=interval.until)
        )
    await services.authenticator.require_valid(principal)
    return json_response(
        {
            "since": result.since,
            "until": result.until,
            "agrees": result.agrees,
            "rows": describe_sums(result.rows),
            "sums": describe_sums(result.sums),
        }
    )


async def _compute(
    services: Services, principal: Principal, query: AnalyticsQuery
) -> list[GroupResult]:
    async with services.analytics.turn(principal.user_id):
        await wait_fresh(services)
        results = await services.database.run_blocking_read(partial(compute_analytics, query=query))
    await services.authenticator.require_valid(principal)
    return results


def _get_bucket(result: GroupResult) -> Bucket:
    return result.bucket


def _flatten(results: Iterable[GroupResult], zone: ZoneInfo) -> Iterable[dict[str, Any]]:
    """Each result as one row, with a column for each percentile."""
    for result in results:
        row: dict[str, Any] = {
            "start_time": result.bucket.start.astimezone(zone),
            "end_time": result.bucket.end.astimezone(zone),
        }
        for name, value in result.values.items():
            if name in LATENCIES:
                row |= {f"{name}_{percentile}": number for percentile, number in value.items()}
            else:
                row[name] = value
        yield row


def _create_csv(
    rows: Iterable[dict[str, Any]], file_name: str, columns: Iterable[str] | None = None
) -> Response:
    listed = list(rows)
    names = list(columns or (listed[0] if listed else ()))
    headers = {"Content-Disposition": f'attachment; filename="{file_name}"'}
    content = format_csv([names, *([row[name] for name in names] for row in listed)])
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)
