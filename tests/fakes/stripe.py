"""Stripe over real HTTP, as the stock client calls it: meter events, thin events, payments.

As documented by Stripe: an identifier is rejected with 400 for 24 hours after it was accepted, and
accepted again later; timestamps may be 35 days old or 5 minutes ahead; values are decimals with up
to 12 digits after the point.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

from service.core.encoding import utc_now
from tests.fakes.stripe_payments import PaymentsFake
from tests.fakes.stripe_protocol import (
    BUSY,
    CUT,
    ERROR,
    ERROR_AFTERWARDS,
    LOST,
    SECRET,
    Reply,
    Response,
    describe_error,
    sign,
)

__all__ = [
    "BUSY",
    "CUT",
    "ERROR",
    "ERROR_AFTERWARDS",
    "KEY",
    "LOST",
    "METER",
    "SECRET",
    "Reply",
    "StripeFake",
    "sign",
]

KEY = "sk_test_kotae"
METER = "kotae_usage"
IDENTIFIER_HOURS, AGE_DAYS, AHEAD_MINUTES, DIGITS = 24, 35, 5, 12


@dataclass(frozen=True)
class Accepted:
    """A meter event that is billed."""

    identifier: str
    customer: str
    value: Decimal
    timestamp: int
    at: datetime


class StripeFake:
    """Accepts meter events. `replies`: for the next of them; `clock`: the time at Stripe.

    `payments`: the other calls.
    """

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self.accepted: list[Accepted] = []
        self.replies: deque[Reply] = deque()
        self.events: dict[str, dict[str, Any]] = {}  # thin events by id, complete
        self.requests: list[dict[str, str]] = []
        self.is_away = False
        self.read_replies: deque[Reply] = deque()  # for the next reads of meters and summaries
        self.absent_customers: set[str] = set()
        self.dropped: set[str] = set()  # identifiers of accepted events that are not added up
        self.page_max = 100  # objects of a list
        self.meters = [("mtr_0", METER, "inactive", "sum"), ("mtr_1", METER, "active", "sum")]
        self.arrived = asyncio.Event()
        self.release: asyncio.Event | None = None  # responses wait for it
        self.payments = PaymentsFake(lambda: self.url, clock)
        self._clock = clock
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def url(self) -> str:
        """The base URL for the client."""
        return f"http://127.0.0.1:{self.port}"

    def sum_nano_usd(self) -> dict[tuple[str, int], int]:
        """What is billed by customer and hour since 1970, in nano-dollars."""
        sums: Counter[tuple[str, int]] = Counter()
        for event in self.accepted:
            if event.identifier not in self.dropped:
                sums[event.customer, event.timestamp // 3600] += int(event.value * 1000)
        return {key: value for key, value in sums.items() if value}

    def count_identifiers(self) -> Counter[str]:
        """How often each identifier was accepted."""
        return Counter(event.identifier for event in self.accepted)

    def report_errors(
        self, event_id: str, identifiers: list[str], count: int | None = None
    ) -> dict[str, Any]:
        """Create an error report of meter events, and return its notification."""
        kind = "v1.billing.meter.error_report_triggered"
        samples = [
            {"error_message": "No customer", "request": {"identifier": identifier}}
            for identifier in identifiers
        ]
        count = len(identifiers) if count is None else count
        error_type = {
            "code": "meter_event_customer_not_found",
            "error_count": count,
            "sample_errors": samples,
        }
        notification = {
            "id": event_id,
            "object": "v2.core.event",
            "type": kind,
            "created": "2026-11-29T12:00:00.000Z",
            "livemode": False,
            "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters"},
        }
        self.events[event_id] = notification | {
            "data": {
                "developer_message_summary": "There is 1 invalid event",
                "reason": {"error_count": count, "error_types": [error_type]},
            }
        }
        return notification

    async def wait_requests(self, count: int) -> None:
        """Wait until this number of requests has arrived."""
        async with asyncio.timeout(60):
            while len(self.requests) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while not self.is_away and await self._respond(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        response: Response
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if self.is_away:
            return False
        path, _, query = path.partition("?")
        fields = dict(parse_qsl(query or body.decode(), keep_blank_values=True))
        if path.startswith("/pay/"):
            response = await self.payments.respond_page(method, path)
        elif headers.get("authorization") != f"Bearer {KEY}":
            response = 401, {}, describe_error("Invalid API Key")
        elif method == "GET" and path.startswith("/v2/core/events/"):
            event = self.events.get(path.rpartition("/")[2])
            response = (200, {}, event) if event else (404, {}, describe_error("None"))
        elif method == "GET" and path.startswith("/v1/billing/meters"):
            reply = self.read_replies.popleft() if self.read_replies else None
            response = (
                self._list(path, fields)
                if reply is None
                else (reply.status, reply.headers, describe_error("The fake refuses this"))
            )
        elif (method, path) == ("POST", "/v1/billing/meter_events"):
            self.requests.append(fields)
            response = self._create(fields)
            self.arrived.set()
            if self.release is not None:
                await self.release.wait()
        else:
            key = headers.get("idempotency-key")
            response = await self.payments.respond(method, path, fields, key)
        status, extra, value = response
        if not status:
            return False
        media_type = "text/html" if isinstance(value, str) else "application/json"
        payload = (value if isinstance(value, str) else json.dumps(value)).encode()
        lines = "".join(f"{name}: {text}\r\n" for name, text in extra.items())
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {media_type}\r\n{lines}"
            f"content-length: {len(payload)}\r\n\r\n".encode()
            + payload
        )
        await writer.drain()
        return True

    def _create(self, fields: Mapping[str, str]) -> Response:
        reply = self.replies.popleft() if self.replies else None
        if reply is not None and not reply.processed:
            return reply.status, reply.headers, describe_error("The fake refuses this")
        status, headers, value = self._accept(fields)
        if reply is not None:
            return reply.status, reply.headers, describe_error("An error afterwards")
        return status, headers, value

    def _list(self, path: str, query: Mapping[str, str]) -> Response:
        """A page of the meters or of the sums of a customer, as their cursors demand."""
        if query.get("customer") in self.absent_customers:
            error = describe_error(f"No such customer: '{query['customer']}'")
            error["error"]["code"] = "resource_missing"
            return 404, {}, error
        items = self._list_meters() if path == "/v1/billing/meters" else self._sum(query)
        ids = [item["id"] for item in items]
        start = ids.index(query["starting_after"]) + 1 if "starting_after" in query else 0
        end = start + min(int(query.get("limit", 10)), self.page_max)
        page = {"object": "list", "url": path, "data": items[start:end]}
        return 200, {}, page | {"has_more": end < len(items)}

    def _list_meters(self) -> list[dict[str, Any]]:
        return [
            {
                "id": meter_id,
                "object": "billing.meter",
                "event_name": name,
                "status": status,
                "default_aggregation": {"formula": formula},
            }
            for meter_id, name, status, formula in self.meters
        ]

    def _sum(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The sums of each hour of an interval, also of those without events."""
        sums: Counter[int] = Counter()
        for event in self.accepted:
            if event.customer == query["customer"] and event.identifier not in self.dropped:
                sums[event.timestamp // 3600] += int(event.value * 1000)
        hours = range(int(query["start_time"]) // 3600, int(query["end_time"]) // 3600)
        return [
            {
                "id": f"mtrusg_{hour}",
                "object": "billing.meter_event_summary",
                "aggregated_value": sums[hour] / 1000,
                "start_time": hour * 3600,
                "end_time": (hour + 1) * 3600,
            }
            for hour in reversed(hours)
        ]

    def _accept(self, fields: Mapping[str, str]) -> Response:
        now, final = self._clock(), {"stripe-should-retry": "false"}
        identifier, value = fields["identifier"], fields["payload[value]"]
        timestamp = datetime.fromtimestamp(int(fields["timestamp"]), UTC)
        if len(identifier) > 100 or fields["event_name"] != METER:
            return 400, final, describe_error("Invalid identifier or event name")
        if (
            not now - timedelta(days=AGE_DAYS)
            <= timestamp
            <= now + timedelta(minutes=AHEAD_MINUTES)
        ):
            return 400, final, describe_error("The timestamp is out of range")
        if len(value.partition(".")[2]) > DIGITS:
            return 400, final, describe_error("Too many digits")
        since = now - timedelta(hours=IDENTIFIER_HOURS)
        if any(event.identifier == identifier and event.at > since for event in self.accepted):
            message = f"An event already exists with identifier {identifier}."
            return 400, final, describe_error(message)
        customer = fields["payload[stripe_customer_id]"]
        self.accepted.append(
            Accepted(identifier, customer, Decimal(value), int(fields["timestamp"]), now)
        )
        return 200, {}, {"object": "billing.meter_event", "identifier": identifier}
