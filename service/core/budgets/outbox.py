"""Alerts: one for each budget, window and threshold, and the outbox of their delivery.

There is also one for each credit of a wallet that is used up to an amount (`low_credit.py`).

An alert is derived from the rollups, which are committed with the rows. If the process dies before
the alert is committed, the next evaluation derives it again; afterwards the unique key of the table
prevents a second one. Spend that arrives late is included: a window is evaluated until
`LATE_SECONDS` after its end.

    pending ──► delivered   the receiver has confirmed it
        └─────► failed      not after `ATTEMPTS_MAX`; `retry_alert` makes it pending again

A delivery is not marked before the receiver has confirmed it, so that a crash repeats it, with the
same id. An alert that is created without a receiver is `unsent`, for good.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from service.core.budgets.budget import (
    Budget,
    Period,
    Window,
    compute_percent,
    compute_window,
)
from service.core.budgets.low_credit import EVENT_TYPE as CREDIT_EVENT_TYPE
from service.core.budgets.low_credit import LowWallet, describe_wallet, list_low_wallets
from service.core.budgets.spend import Spend, read_spends
from service.core.budgets.store import list_budgets
from service.core.database.engine import Database, ReadSession
from service.core.database.outboxes import describe_failure, retry_row, select_due
from service.core.database.tables import budget_alerts
from service.core.database.upserts import insert_new
from service.core.encoding import convert_row, create_id, to_json
from service.core.errors import NotFound
from service.core.pricing import format_usd

LATE_SECONDS = 86_400.0  # after the end of a window, in which late usage is still evaluated
KEPT_DAYS = 400  # alerts of earlier windows are deleted
ALERTS_PAGE_MAX = 200
EVENT_TYPE = "budget.threshold_reached"


class AlertState(StrEnum):
    """The delivery of an alert."""

    UNSENT = "unsent"  # there was no receiver
    PENDING = "pending"  # not confirmed yet
    DELIVERED = "delivered"  # confirmed by the receiver
    FAILED = "failed"  # given up


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `body`: the JSON text that the receiver gets, the same at every attempt.

    For low credit, `budget_id` is the ledger entry of the credit, and `threshold` is 0.
    """

    id: str
    budget_id: str
    window_start: datetime
    threshold: int
    body: str
    created_at: datetime
    state: AlertState
    attempts: int = 0
    next_at: datetime | None = None
    delivered_at: datetime | None = None
    error: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """The alert in the API: the delivery, and the event that the receiver gets."""
        values = msgspec.structs.asdict(self)
        values["event"] = msgspec.json.decode(values.pop("body"))
        return values


async def create_alerts(
    database: Database, at: datetime, *, deliver: bool, credit_nano_usd: int | None = None
) -> list[Alert]:
    """Create the alerts of all thresholds that are reached and have none; return the new ones.

    `deliver`: there is a receiver. `credit_nano_usd`: the balance below which credit is low; None:
    there are no alerts about it. Idempotent. Raises `DatabaseUnavailable`.
    """
    async with database.read_session() as session:
        alerts = await _derive_alerts(session, at, deliver=deliver)
        if credit_nano_usd is not None:
            since = at - timedelta(days=KEPT_DAYS)
            alerts += [
                _create_credit_alert(wallet, credit_nano_usd, at, deliver=deliver)
                for wallet in await list_low_wallets(session, credit_nano_usd, since)
            ]
    if not alerts:
        return []
    async with database.transaction() as session:
        new = await insert_new(
            session, budget_alerts, [msgspec.structs.asdict(alert) for alert in alerts]
        )
        await session.execute(
            sa.delete(budget_alerts).where(
                budget_alerts.c.window_start < at - timedelta(days=KEPT_DAYS),
                budget_alerts.c.state != AlertState.PENDING,
            )
        )
    return [alert for alert in alerts if alert.id in new]


async def _derive_alerts(session: ReadSession, at: datetime, *, deliver: bool) -> list[Alert]:
    """The alerts that are due and do not exist yet."""
    listed = await list_budgets(session)
    alerts: list[Alert] = []
    for period in Period:
        for window in list_windows(period, at):
            budgets = [
                budget
                for budget in listed
                if budget.period is period and budget.created_at < window.end
            ]
            if not budgets:
                continue
            spends = await read_spends(session, budgets, window)
            existing = await _read_existing(session, window)
            alerts += [
                _create_alert(budget, window, spends[budget.id], threshold, at, deliver=deliver)
                for budget in budgets
                for threshold in budget.list_reached(spends[budget.id].nano_usd)
                if (budget.id, threshold) not in existing
            ]
    return alerts


def list_windows(period: Period, at: datetime) -> list[Window]:
    """The windows to evaluate at a time: the current one, and the previous one for a while."""
    current = compute_window(period, at)
    if (at - current.start).total_seconds() > LATE_SECONDS:
        return [current]
    return [current, compute_window(period, current.start - timedelta(seconds=1))]


async def _read_existing(session: ReadSession, window: Window) -> set[tuple[str, int]]:
    query = sa.select(budget_alerts.c.budget_id, budget_alerts.c.threshold).where(
        budget_alerts.c.window_start == window.start
    )
    return {(row.budget_id, row.threshold) for row in await session.execute(query)}


def _create_alert(
    budget: Budget, window: Window, spend: Spend, threshold: int, at: datetime, *, deliver: bool
) -> Alert:
    data = {
        "budget_id": budget.id,
        "budget": budget.name,
        "subject": budget.subject,
        "period": budget.period,
        "window_start": window.start,
        "window_end": window.end,
        "threshold": threshold,
        "percent": compute_percent(spend.nano_usd, budget.amount_nano_usd),
        "amount_usd": format_usd(budget.amount_nano_usd),
        "spent_usd": format_usd(spend.nano_usd),
        "unpriced": spend.unpriced,
        "action": budget.action,
    }
    key = (budget.id, window.start, threshold)
    return _build_alert(key, EVENT_TYPE, data, at, deliver=deliver)


def _create_credit_alert(
    wallet: LowWallet, amount_nano_usd: int, at: datetime, *, deliver: bool
) -> Alert:
    key = (wallet.credit_id, wallet.credited_at, 0)
    data = describe_wallet(wallet, amount_nano_usd)
    return _build_alert(key, CREDIT_EVENT_TYPE, data, at, deliver=deliver)


def _build_alert(
    key: tuple[str, datetime, int],
    event_type: str,
    data: Mapping[str, object],
    at: datetime,
    *,
    deliver: bool,
) -> Alert:
    """`key`: the unique key of the table."""
    alert_id = create_id(at)
    body = {"type": event_type, "timestamp": at, "data": {"alert_id": alert_id, **data}}
    budget_id, window_start, threshold = key
    return Alert(
        id=alert_id,
        budget_id=budget_id,
        window_start=window_start,
        threshold=threshold,
        body=to_json(body).decode(),
        created_at=at,
        state=AlertState.PENDING if deliver else AlertState.UNSENT,
        next_at=at if deliver else None,
    )


async def list_alerts(
    session: ReadSession, *, state: AlertState | None = None, budget_id: str | None = None
) -> list[Alert]:
    """Alerts, newest first, at most `ALERTS_PAGE_MAX`; optionally with a state, of a budget."""
    query = sa.select(budget_alerts).order_by(budget_alerts.c.id.desc()).limit(ALERTS_PAGE_MAX)
    if state is not None:
        query = query.where(budget_alerts.c.state == state)
    if budget_id is not None:
        query = query.where(budget_alerts.c.budget_id == budget_id)
    alerts = [_read_alert(row) for row in (await session.execute(query)).mappings()]
    # Ids of one evaluation are in no order.
    return sorted(alerts, key=lambda alert: (alert.created_at, alert.threshold), reverse=True)


async def list_due(session: ReadSession, at: datetime, count_max: int) -> list[Alert]:
    """The alerts whose next delivery is due, the longest due first."""
    query = select_due(budget_alerts, at, count_max)
    return [_read_alert(row) for row in (await session.execute(query)).mappings()]


async def record_delivery(
    database: Database, alert: Alert, at: datetime, *, error: str | None, is_final: bool = False
) -> AlertState:
    """Record the result of an attempt, and return the state; `error` None: it is confirmed.

    `is_final`: the receiver wants no further attempt. Raises `DatabaseUnavailable`.
    """
    if error is None:
        values: dict[str, Any] = {
            "state": AlertState.DELIVERED,
            "attempts": alert.attempts + 1,
            "next_at": None,
            "delivered_at": at,
            "error": None,
        }
    else:
        values = describe_failure(alert.attempts + 1, error, at, is_final=is_final)
    is_pending = budget_alerts.c.state == AlertState.PENDING
    async with database.transaction() as session:
        await session.execute(
            sa.update(budget_alerts)
            .where(budget_alerts.c.id == alert.id, is_pending)
            .values(values)
        )
    return AlertState(values["state"])


async def retry_alert(database: Database, alert_id: str, at: datetime) -> Alert:
    """Deliver a failed or pending alert now. Raises `NotFound` for others, `DatabaseUnavailable`.

    The attempts are counted from the start again.
    """
    async with database.transaction() as session:
        row = await retry_row(session, budget_alerts, alert_id, at)
    if row is None:
        raise NotFound("no alert with this id is to be delivered")
    return _read_alert(row)


def _read_alert(row: Mapping[Any, Any]) -> Alert:
    return convert_row(row, Alert)
