"""Payments at Stripe: customers, Checkout, refunds, disputes, the portal and invoices.

Part of `StripeFake`. As documented by Stripe: an idempotency key replays its first response, also
an error, for 24 hours; amounts are in cents; a dispute has a balance transaction for each movement
of money; events may be delivered late, repeatedly, in any order, or not at all.
"""

import asyncio
import html
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2

from tests.fakes.stripe_protocol import SECRET, Reply, Response, describe_error, sign

KEY_HOURS = 24
Object = dict[str, Any]
_LISTS = {
    "/v1/checkout/sessions": "cs_",
    "/v1/payment_intents": "pi_",
    "/v1/refunds": "re_",
    "/v1/disputes": "dp_",
    "/v1/invoices": "in_",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Checkout</title>
<h1>Pay ${amount}</h1><form method="post"><button id="pay">Pay</button></form>
<a id="cancel" href="{cancel_url}">Cancel</a></html>"""


@dataclass
class Remembered:
    """The response to an idempotency key."""

    fields: Mapping[str, str]
    at: datetime
    response: Response


@dataclass
class PaymentsFake:
    """The objects of an account. `replies`: for the next calls, instead of the usual response.

    `endpoint`: URL of a webhook that gets the events of a page at once, `copies` times each.
    `tax_percent`: added to each payment with automatic tax.
    """

    base_url: Callable[[], str]
    clock: Callable[[], datetime]
    replies: deque[Reply] = field(default_factory=deque)
    objects: dict[str, Object] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)  # as they happened
    calls: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    endpoint: str | None = None
    secret: str = SECRET
    copies: int = 1
    tax_percent: int = 0
    is_asynchronous: bool = False  # payments of the page succeed later
    release: asyncio.Event | None = None  # responses wait for it, from this call on:
    release_from: int = 0
    waits_afterwards: bool = False  # when the call is processed
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _keys: dict[str, Remembered] = field(default_factory=dict)

    def list_objects(self, prefix: str, **values: str) -> list[Object]:
        """The objects whose id has this prefix, newest first, with these values."""
        return [
            item
            for item in reversed(self.objects.values())
            if item["id"].startswith(prefix)
            and all(item.get(name) == value for name, value in values.items())
        ]

    # What customers, banks and the operator do.

    def pay(self, session_id: str, *, asynchronous: bool = False) -> str:
        """Complete a session; return the payment. Asynchronous: the money arrives later."""
        session = self.objects[session_id]
        metadata = session.pop("_payment_metadata")
        payment = self._add("pi_", customer=session["customer"], metadata=metadata)
        charge = self._add("ch_", payment_intent=payment["id"], currency=session["currency"])
        session |= {"status": "complete", "payment_intent": payment["id"]}
        session["payment_status"] = "unpaid" if asynchronous else "paid"
        payment["latest_charge"] = charge["id"]
        self._emit("checkout.session.completed", session)
        return str(payment["id"])

    def settle(self, session_id: str) -> None:
        """Let the money of an asynchronous payment arrive."""
        session = self.objects[session_id]
        session["payment_status"] = "paid"
        self._emit("checkout.session.async_payment_succeeded", session)

    def refund(self, payment_id: str, cents: int, status: str = "succeeded") -> str:
        """Refund a part of a payment."""
        charge = self.objects[self.objects[payment_id]["latest_charge"]]
        values = {"payment_intent": payment_id, "amount": cents, "status": status}
        refund = self._add("re_", currency=charge["currency"], charge=charge["id"], **values)
        self._emit("refund.created", refund)
        self._emit("charge.refunded", charge)
        return str(refund["id"])

    def change_refund(self, refund_id: str, status: str) -> None:
        """A pending refund succeeds, or a refund fails."""
        refund = self.objects[refund_id]
        refund["status"] = status
        self._emit("refund.updated", refund)
        if status == "failed":
            self._emit("refund.failed", refund)

    def withdraw(self, payment_id: str, cents: int) -> str:
        """Open a dispute, with which the money is withdrawn."""
        charge = self.objects[self.objects[payment_id]["latest_charge"]]
        movement = {"object": "balance_transaction", "amount": -cents, "currency": "usd"}
        dispute = self._add(
            "dp_",
            payment_intent=payment_id,
            amount=cents,
            currency=charge["currency"],
            charge=charge["id"],
            balance_transactions=[movement],
        )
        self._emit("charge.dispute.funds_withdrawn", dispute)
        return str(dispute["id"])

    def reinstate(self, dispute_id: str, cents: int | None = None) -> None:
        """Win a dispute, or a part of it."""
        dispute = self.objects[dispute_id]
        amount = dispute["amount"] if cents is None else cents
        dispute["balance_transactions"].append(
            {"object": "balance_transaction", "amount": amount, "currency": "usd"}
        )
        self._emit("charge.dispute.funds_reinstated", dispute)

    def add_invoice(self, customer_id: str, total: int) -> str:
        """An invoice that is paid."""
        number = f"INV-{len(self.objects)}"
        values = {"number": number, "hosted_invoice_url": "https://invoice.stripe.com/i/x"}
        return str(
            self._add(
                "in_",
                customer=customer_id,
                total=total,
                currency="usd",
                status="paid",
                invoice_pdf="https://pay.stripe.com/invoice/x/pdf",
                **values,
            )["id"]
        )

    def sum_nano_usd(self, user_id: str) -> int:
        """Payments − refunds − withdrawn + reinstated of a user, without tax, in nano-dollars."""
        return sum(
            sum(self._list_movements(payment))
            for payment in self.list_objects("pi_")
            if payment["metadata"].get("kotae_user") == user_id
        )

    def _list_movements(self, payment: Object) -> Iterator[int]:
        (session,) = self.list_objects("cs_", payment_intent=payment["id"])
        if session["payment_status"] != "paid":
            return
        total = session["amount_total"]
        credit = total - session["total_details"]["amount_tax"]
        yield credit * 10**7
        for refund in self.list_objects("re_", payment_intent=payment["id"]):
            if refund["status"] == "succeeded":
                yield -(refund["amount"] * credit * 10**7 // total)
        for dispute in self.list_objects("dp_", payment_intent=payment["id"]):
            for movement in dispute["balance_transactions"]:
                sign_ = 1 if movement["amount"] > 0 else -1
                yield sign_ * (abs(movement["amount"]) * credit * 10**7 // total)

    # Webhooks.

    async def deliver(self, event: Object) -> httpx2.Response:
        """Send an event to the endpoint, signed."""
        body = json.dumps(event).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(body, self.secret),
        }
        async with httpx2.AsyncClient(verify=False) as client:  # no TLS; contexts are slow
            return await client.post(self.endpoint or "", content=body, headers=headers)

    async def deliver_new(self, begin: int) -> None:
        """Send the events since a number of them, each `copies` times, the newest first."""
        for event in reversed(self.events[begin:]):
            for _ in range(self.copies):
                await self.deliver(event)

    # The server.

    async def respond(
        self, method: str, path: str, fields: Mapping[str, str], key: str | None
    ) -> Response:
        """The response to a call of the API."""
        self.calls.append((method, path, fields))
        is_waiting = self.release is not None and len(self.calls) >= self.release_from
        self.arrived.set()
        if is_waiting and not self.waits_afterwards:
            await self._wait_release()
        response = self._respond(method, path, fields, key)
        if is_waiting and self.waits_afterwards:
            await self._wait_release()
        return response

    async def wait_calls(self, count: int) -> None:
        """Wait until this number of calls has arrived."""
        async with asyncio.timeout(60):
            while len(self.calls) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def _wait_release(self) -> None:
        if self.release is not None:
            await self.release.wait()

    def _respond(
        self, method: str, path: str, fields: Mapping[str, str], key: str | None
    ) -> Response:
        remembered = self._keys.get(key) if key else None
        if remembered and remembered.at > self.clock() - timedelta(hours=KEY_HOURS):
            if remembered.fields != fields:
                return 400, {}, describe_error("Keys for idempotent requests", "idempotency_error")
            return remembered.response
        reply = self.replies.popleft() if self.replies else None
        if reply is not None and not reply.processed:
            return reply.status, reply.headers, describe_error("The fake refuses this")
        response = self._process(method, path, fields)
        if key:
            self._keys[key] = Remembered(fields, self.clock(), response)
        if reply is not None:
            return reply.status, reply.headers, describe_error("An error afterwards")
        return response

    def _process(self, method: str, path: str, fields: Mapping[str, str]) -> Response:
        if method == "GET":
            return self._read(path, fields)
        match path:
            case "/v1/customers":
                metadata = _read_map(fields, "metadata")
                created = self._add("cus_", object="customer", metadata=metadata)
            case "/v1/checkout/sessions":
                return self._create_session(fields)
            case "/v1/billing_portal/sessions":
                created = self._add("bps_", url=f"{self.base_url()}/portal")
                created["return_url"] = fields["return_url"]
            case _:
                return 404, {}, describe_error(f"Unrecognized URL {path}")
        return 200, {}, created

    def _create_session(self, fields: Mapping[str, str]) -> Response:
        if fields["customer"] not in self.objects:
            return 400, {}, describe_error(f"No such customer: '{fields['customer']}'")
        cents = int(fields["line_items[0][price_data][unit_amount]"])
        has_tax = fields["automatic_tax[enabled]"] == "true"
        tax = cents * self.tax_percent // 100 if has_tax else 0
        session = self._add(
            "cs_",
            object="checkout.session",
            customer=fields["customer"],
            client_reference_id=fields["client_reference_id"],
            metadata=_read_map(fields, "metadata"),
            currency=fields["line_items[0][price_data][currency]"],
            amount_total=cents + tax,
            total_details={"amount_tax": tax, "amount_discount": 0},
            payment_intent=None,
            payment_status="unpaid",
            status="open",
            success_url=fields["success_url"],
            cancel_url=fields["cancel_url"],
            _payment_metadata=_read_map(fields, "payment_intent_data[metadata]"),
        )
        session["url"] = f"{self.base_url()}/pay/{session['id']}"
        return 200, {}, session

    def _read(self, path: str, fields: Mapping[str, str]) -> Response:
        if path in _LISTS:
            others = ("limit", "created[gte]")
            names = {name: value for name, value in fields.items() if name not in others}
            items = self.list_objects(_LISTS[path], **names)
            since = int(fields.get("created[gte]", "0"))
            items = [item for item in items if item["created"] >= since]
            limit = int(fields.get("limit", "10"))
            page = {"object": "list", "url": path, "data": items[:limit]}
            return 200, {}, page | {"has_more": len(items) > limit}
        item = self.objects.get(path.rpartition("/")[2])
        if item is None:
            error = describe_error(f"No such object: {path}")
            error["error"]["code"] = "resource_missing"
            return 404, {}, error
        return 200, {}, item

    async def respond_page(self, method: str, path: str) -> Response:
        """The page of a session: a stand-in for Checkout."""
        session = self.objects.get(path.rpartition("/")[2])
        if session is None:
            return 404, {}, "<!doctype html><title>404</title>"
        if method == "GET":
            amount = f"{session['amount_total'] / 100:.2f}"
            cancel_url = html.escape(session["cancel_url"])
            return 200, {}, _PAGE.format(amount=amount, cancel_url=cancel_url)
        begin = len(self.events)
        if session["status"] == "open":
            self.pay(session["id"], asynchronous=self.is_asynchronous)
        if self.endpoint is not None:
            await self.deliver_new(begin)
        return 303, {"location": session["success_url"]}, ""

    def _add(self, prefix: str, **values: Any) -> Object:
        item = {"id": f"{prefix}{len(self.objects) + 1}"} | values
        item["created"] = int(self.clock().timestamp())
        self.objects[item["id"]] = item
        return item

    def _emit(self, kind: str, item: Object) -> None:
        copy = json.loads(json.dumps(item))  # the state at that time, which may be stale later
        event = {"id": f"evt_{len(self.events) + 1}", "object": "event", "type": kind}
        self.events.append(event | {"livemode": False, "data": {"object": copy}})


def build_thin(event: Object) -> Object:
    """The same event as a thin notification."""
    item = event["data"]["object"]
    return {
        "id": f"{event['id']}_thin",
        "object": "v2.core.event",
        "type": f"v1.{event['type']}",
        "related_object": {"id": item["id"], "type": item.get("object"), "url": "/v1/x"},
    }


def _read_map(fields: Mapping[str, str], name: str) -> dict[str, str]:
    return {
        key[len(name) + 1 : -1]: value
        for key, value in fields.items()
        if key.startswith(f"{name}[")
    }
