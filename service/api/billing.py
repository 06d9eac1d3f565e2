"""Billing: customers at Stripe, meter events, and events from Stripe."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.dependencies import AdminKeysPrincipal, ServicesDep
from service.api.json_bodies import BodyRoute, read_body
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    CustomerBody,
    DecisionBody,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.api.shapes import (
    CustomerList,
    CustomerObject,
    InboxList,
    MeterEventList,
    WebhookReceived,
)
from service.core.billing import customers, inbox, meter_events, review, webhooks
from service.core.billing.inbox import InboxEvent, InboxState
from service.core.billing.meter_events import EventObject, EventState
from service.core.billing.reconciliation import BillingReconciliation
from service.core.billing.review import BillingStatus, Decision
from service.core.encoding import utc_now
from service.core.errors import NotFound
from service.core.telemetry import log

router = APIRouter(prefix="/billing", tags=["billing"], route_class=BodyRoute)

SENDER = "stripe"  # whose bodies share a limit
_NO_CUSTOMER = problem_schemas(_404="`not_found`: the user is not connected to a customer")
_NO_EVENT = problem_schemas(_404="`not_found`: no event with this id is in review")
_NO_INBOX = problem_schemas(_404="`not_found`: no event with this id is failed or pending")
_UNREADABLE = problem_schemas(
    _404="`not_found`: KOTAE_STRIPE_METER is not set",
    _502="`stripe_refused`: the key or the meter is wrong",
    _503="`stripe_unavailable`: Stripe does not respond",
)
_FULL = problem_schemas(_409="`customers_full`: there is the maximum number of customers")
_DISABLED = problem_schemas(_404="`not_found`: KOTAE_STRIPE_WEBHOOK_SECRET is not set")
UserPath = Annotated[UserId, Path()]
InboxId = Annotated[str, Path(max_length=255, pattern=r"^[!-~]+$")]
EventId = Annotated[str, Path(max_length=100, pattern=r"^[A-Za-z0-9-]+$")]


@router.get("/customers", responses={200: schema_ref(CustomerList, "By user"), **REFUSALS})
async def list_customers(services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """The users who are billed, and as which customer."""
    async with services.database.read_session() as session:
        return json_response({"items": await customers.list_customers(session)})


@router.get(
    "/customers/{user_id}",
    responses={200: schema_ref(CustomerObject, "The customer"), **REFUSALS, **_NO_CUSTOMER},
)
async def get_customer(user_id: UserPath, services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """The customer as which a user is billed, and since when."""
    async with services.database.read_session() as session:
        return json_response(await customers.read_customer(session, user_id))


@router.put(
    "/customers/{user_id}",
    responses={200: schema_ref(CustomerObject, "The customer"), **REFUSALS, **_FULL},
)
async def connect_customer(
    user_id: UserPath, body: CustomerBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Bill a user as a customer from now on. Idempotent."""
    customer = await customers.connect_customer(
        services.database, principal, user_id, body.stripe_customer_id
    )
    log.info("customer.connected", user_id=user_id, customer=customer.stripe_customer_id)
    return json_response(customer)


@router.delete(
    "/customers/{user_id}",
    status_code=204,
    responses={**REFUSALS, **_NO_CUSTOMER},
    response_class=Response,
)
async def disconnect_customer(
    user_id: UserPath, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Bill nothing from now on. Usage until now still is."""
    customer = await customers.disconnect_customer(services.database, principal, user_id)
    log.info("customer.disconnected", user_id=user_id, customer=customer.stripe_customer_id)
    return Response(status_code=204)


@router.get(
    "/events", responses={200: schema_ref(MeterEventList, "Latest hours first"), **REFUSALS}
)
async def list_events(
    services: ServicesDep,
    _: AdminKeysPrincipal,
    state: Annotated[
        Literal["pending", "delivered", "review", "billed", "replaced"] | None, Query()
    ] = None,
    user_id: Annotated[UserId | None, Query()] = None,
) -> Response:
    """The meter events of the latest hours, at most 200."""
    chosen = None if state is None else EventState(state)
    async with services.database.read_session() as session:
        listed = await meter_events.list_events(session, state=chosen, user_id=user_id)
    return json_response({"items": listed})


@router.post(
    "/events/{event_id}/resolve",
    responses={200: schema_ref(EventObject, "The event to be sent"), **REFUSALS, **_NO_EVENT},
)
async def resolve_event(
    event_id: EventId, body: DecisionBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Decide about an event in review. Returns it, or the event that replaces it."""
    event = await review.resolve_event(
        services.database, principal, event_id, Decision(body.decision), utc_now()
    )
    log.info("meter_event.resolved", event_id=event_id, decision=body.decision)
    return json_response(event)


@router.get("/status", responses={200: schema_ref(BillingStatus, "Usage, events"), **REFUSALS})
async def get_status(services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """The usage of customers in the last 31 days beside their meter events."""
    async with services.database.read_session() as session:
        return json_response(await review.read_status(session, utc_now()))


@router.get("/inbox", responses={200: schema_ref(InboxList, "Latest first"), **REFUSALS})
async def list_inbox(
    services: ServicesDep,
    _: AdminKeysPrincipal,
    state: Annotated[Literal["pending", "processed", "failed"] | None, Query()] = None,
) -> Response:
    """The events that Stripe has sent, at most 200."""
    chosen = None if state is None else InboxState(state)
    async with services.database.read_session() as session:
        return json_response({"items": await inbox.list_received(session, state=chosen)})


@router.post(
    "/inbox/{event_id}/retry",
    responses={200: schema_ref(InboxEvent, "The event, to be processed"), **REFUSALS, **_NO_INBOX},
)
async def retry_event(
    event_id: InboxId, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Process an event again that could not be processed."""
    event = await inbox.retry_event(services.database, principal, event_id, utc_now())
    log.info("stripe_event.retried", event_id=event_id, type=event.type)
    return json_response(event)


@router.get(
    "/reconciliation",
    responses={
        200: schema_ref(BillingReconciliation, "The differences"),
        **REFUSALS,
        **_UNREADABLE,
    },
)
async def get_reconciliation(services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """The usage of the last 24 hours beside what Stripe has, at most five minutes old."""
    if services.reconciliation is None:
        raise NotFound("KOTAE_STRIPE_METER is not set")
    return json_response(await services.reconciliation.read())


@router.post(
    "/webhook",
    responses={
        200: schema_ref(WebhookReceived, "Stored, or of a type that is not used"),
        **REFUSALS,
        **_DISABLED,
    },
)
async def receive_webhook(request: Request, services: ServicesDep) -> Response:
    """An event from Stripe, authenticated by its signature over the body."""
    secrets = services.settings.stripe_webhook_secrets
    if not secrets:
        raise NotFound("webhooks of Stripe are not enabled")
    payload = await read_body(request, SENDER)
    signature = request.headers.get("stripe-signature", "")
    event = webhooks.verify_event(payload, signature, secrets)
    result = await webhooks.receive_event(services.database, event, utc_now())
    services.metrics.stripe_webhooks.labels(result.value).inc()
    log.info("stripe_event.received", event_id=event.id, type=event.type, result=result.value)
    return json_response({"received": True})
