"""Billing over HTTP."""

import json
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from service.core.billing import inbox
from service.core.billing.inbox import InboxEvent, InboxState
from service.core.billing.meter_events import EventState, create_events, record_attempt
from service.core.database.outboxes import ATTEMPTS_MAX
from service.core.encoding import utc_now
from service.workers.billing import BillingWorker
from tests.billing import connect, use
from tests.conftest import Serve, Service
from tests.fakes.stripe import KEY, METER, SECRET, StripeFake, sign
from tests.problems import is_problem

REPORT = {"id": "evt_1", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found"}


async def serve_stripe(serve: Serve, fake: StripeFake, **options: Any) -> Service:
    """A service that is connected to the fake."""
    return await serve(
        stripe_key=KEY,
        stripe_meter=METER,
        stripe_webhook_secret=SECRET,
        stripe_base_url=fake.url,
        **options,
    )


async def send(service: Service, event: Any, signature: str | None = None) -> httpx2.Response:
    """Send an event as Stripe does."""
    body = json.dumps(event).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": sign(body) if signature is None else signature,
    }
    return await service.client.post("/billing/webhook", content=body, headers=headers)


async def test_customers_are_connected_read_and_disconnected(service: Service) -> None:
    """The routes return the connection, with its beginning."""
    path, body = "/billing/customers/alice", {"stripe_customer_id": "cus_1"}
    customer = (await service.client.put(path, json=body)).json()
    assert (customer["user_id"], customer["ended_at"]) == ("alice", None)
    assert (await service.client.put(path, json=body)).json() == customer
    assert (await service.client.get(path)).json() == customer
    assert (await service.client.get("/billing/customers")).json() == {"items": [customer]}
    assert (await service.client.delete(path)).status_code == 204
    for response in (await service.client.get(path), await service.client.delete(path)):
        is_problem(response, 404, "not_found")


@pytest.mark.parametrize("body", [{}, {"stripe_customer_id": "1"}, {"stripe_customer_id": 1}])
async def test_other_customer_ids_are_refused(service: Service, body: Any) -> None:
    """The id of a customer begins with `cus_`."""
    response = await service.client.put("/billing/customers/alice", json=body)
    is_problem(response, 422, "invalid_request")


async def test_events_are_listed_and_resolved(service: Service) -> None:
    """An event in review is listed, and replaced by one to be sent."""
    database, now = service.services.database, utc_now()
    start = (now - timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    await connect(database, at=start)
    await use(database, 1500, start)
    (event,) = await create_events(database, start, now, now)
    await record_attempt(database, event, EventState.REVIEW, now, error="400")
    listed = (await service.client.get("/billing/events", params={"state": "review"})).json()
    assert [(item["id"], item["usd"]) for item in listed["items"]] == [(event.id, "0.0000015")]
    path = f"/billing/events/{event.id}/resolve"
    resolved = (await service.client.post(path, json={"decision": "send"})).json()
    assert (resolved["state"], resolved["number"]) == ("pending", 2)
    is_problem(await service.client.post(path, json={"decision": "billed"}), 404, "not_found")
    (customer,) = (await service.client.get("/billing/status")).json()["customers"]
    assert customer["pending_usd"] == customer["usage_usd"] == "0.0000015"


async def test_a_signed_event_is_stored_once(serve: Serve) -> None:
    """Repeated events and those of unused types are confirmed and counted."""
    async with StripeFake() as fake:
        service = await serve_stripe(serve, fake)
        for event in (REPORT, REPORT, {"id": "evt_2", "type": "invoice.paid"}):
            response = await send(service, event)
            assert (response.status_code, response.json()) == (200, {"received": True})
        registry = service.services.metrics.registry
        for result in ("stored", "repeated", "ignored"):
            name, labels = "kotae_stripe_webhooks_total", {"result": result}
            assert registry.get_sample_value(name, labels) == 1
        async with service.services.database.read_session() as session:
            now = utc_now() + timedelta(days=1)
            assert [item.id for item in await inbox.list_due(session, now, 9)] in ([], ["evt_1"])


async def test_events_without_a_valid_signature_are_refused(serve: Serve) -> None:
    """Nothing is stored; with keys, the route needs no credential but the signature."""
    async with StripeFake() as fake:
        service = await serve_stripe(serve, fake, auth="keys")
        for signature in ("", sign(b"other"), sign(b"", "whsec_x")):
            is_problem(await send(service, REPORT, signature), 400, "signature_invalid")
        async with service.services.database.read_session() as session:
            assert await inbox.list_due(session, utc_now() + timedelta(days=9), 9) == []
        assert (await send(service, REPORT)).status_code == 200


async def test_without_a_secret_there_is_no_webhook(service: Service) -> None:
    """The route is disabled unless it is configured."""
    is_problem(await send(service, REPORT), 404, "not_found")


async def test_failed_events_are_listed_and_retried(serve: Serve) -> None:
    """An event that could not be processed is processed again at an admin's request."""
    async with StripeFake() as fake:
        service = await serve_stripe(serve, fake)
        assert (await send(service, REPORT)).status_code == 200
        database = service.services.database
        event = InboxEvent(
            id="evt_1", type=REPORT["type"], received_at=utc_now(), state=InboxState.PENDING,
            attempts=ATTEMPTS_MAX,
        )  # fmt: skip
        await inbox.delay_event(database, event, "404: no event", utc_now())
        (item,) = (await service.client.get("/billing/inbox?state=failed")).json()["items"]
        assert (item["id"], item["error"]) == ("evt_1", "404: no event")
        fake.report_errors("evt_1", [])
        retried = await service.client.post("/billing/inbox/evt_1/retry")
        assert (retried.status_code, retried.json()["state"]) == (200, "pending")
        worker = service.services.workers["billing"]
        assert isinstance(worker, BillingWorker)
        await worker.process_inbox()
        (item,) = (await service.client.get("/billing/inbox")).json()["items"]
        assert item["state"] == "processed"
        is_problem(await service.client.post("/billing/inbox/evt_1/retry"), 404, "not_found")


async def test_the_last_day_is_reconciled(serve: Serve) -> None:
    """Differences to Stripe are listed, and kept for some minutes."""
    async with StripeFake() as fake:
        service = await serve_stripe(serve, fake)
        now = utc_now()
        await connect(service.services.database, at=now - timedelta(hours=4))
        await use(service.services.database, 1500, now - timedelta(hours=3))
        first = await service.client.get("/billing/reconciliation")
        assert first.status_code == 200, first.text
        (difference,) = first.json()["differences"]
        assert (difference["cause"], difference["usd"]) == ("open", "0.0000015")
        fake.is_away = True
        again = await service.client.get("/billing/reconciliation")
        assert again.json() == first.json()


async def test_an_unreadable_meter_is_reported(serve: Serve) -> None:
    """A wrong configuration of Stripe is 502."""
    async with StripeFake() as fake:
        fake.meters = []
        connected = await serve_stripe(serve, fake)
        await connect(connected.services.database, at=utc_now() - timedelta(hours=4))
        is_problem(await connected.client.get("/billing/reconciliation"), 502, "stripe_refused")


async def test_without_a_meter_there_is_no_reconciliation(service: Service) -> None:
    """The route is disabled unless it is configured."""
    is_problem(await service.client.get("/billing/reconciliation"), 404, "not_found")
