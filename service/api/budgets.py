"""Budgets and their alerts. For admins."""

from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response

from service.api.dependencies import AdminKeysPrincipal, Services, ServicesDep
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import REFUSALS, BudgetBody, BudgetChange, problem_schemas, schema_ref
from service.api.shapes import AlertList, AlertObject, BudgetList
from service.core.budgets import outbox, store
from service.core.budgets.budget import THRESHOLDS, Budget, BudgetAction, Period
from service.core.budgets.outbox import AlertState
from service.core.budgets.spend import BudgetObject, describe_budgets
from service.core.encoding import utc_now
from service.core.pricing import to_nano_usd
from service.core.telemetry import log

router = APIRouter(prefix="/ai", tags=["budgets"], route_class=BodyRoute)

_MISSING = problem_schemas(_404="`not_found`: no such budget, plan, key or alert")
_TAKEN = problem_schemas(_409="`budget_exists`: the name is in use; `budgets_full`")
BudgetId = Annotated[str, Path(max_length=36, pattern=r"^[A-Za-z0-9-]+$")]


@router.post(
    "/budgets",
    status_code=201,
    responses={201: schema_ref(BudgetObject, "The budget"), **REFUSALS, **_MISSING, **_TAKEN},
)
async def create_budget(
    body: BudgetBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Create a budget. It counts what was spent in its current window before."""
    budget = await store.create_budget(
        services.database,
        principal,
        store.NewBudget(
            name=body.name,
            subject=body.subject,
            amount_nano_usd=to_nano_usd(Decimal(body.amount_usd)),
            period=Period(body.period),
            thresholds=THRESHOLDS if body.thresholds is None else body.thresholds,
            action=BudgetAction(body.action),
        ),
    )
    await services.budgets.refresh()
    log.info("budget.created", budget_id=budget.id, name=budget.name)
    return await _respond(services, budget, 201)


@router.get("/budgets", responses={200: schema_ref(BudgetList, "Budgets, by name"), **REFUSALS})
async def list_budgets(services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """All budgets with the spend of their current windows."""
    async with services.database.read_session() as session:
        listed = await store.list_budgets(session)
        return json_response({"items": await describe_budgets(session, listed, utc_now())})


@router.get(
    "/budget-alerts", responses={200: schema_ref(AlertList, "Alerts, newest first"), **REFUSALS}
)
async def list_alerts(
    services: ServicesDep,
    _: AdminKeysPrincipal,
    state: Annotated[Literal["unsent", "pending", "delivered", "failed"] | None, Query()] = None,
) -> Response:
    """The latest 200 alerts and the state of their delivery."""
    chosen = None if state is None else AlertState(state)
    async with services.database.read_session() as session:
        alerts = await outbox.list_alerts(session, state=chosen)
    return json_response({"items": [alert.to_wire() for alert in alerts]})


@router.post(
    "/budget-alerts/{alert_id}/retry",
    responses={200: schema_ref(AlertObject, "The alert"), **REFUSALS, **_MISSING},
)
async def retry_alert(alert_id: BudgetId, services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """Deliver an alert again that was given up or waits for its next attempt."""
    alert = await outbox.retry_alert(services.database, alert_id, utc_now())
    return json_response(alert.to_wire())


@router.get(
    "/budgets/{budget_id}",
    responses={200: schema_ref(BudgetObject, "The budget"), **REFUSALS, **_MISSING},
)
async def get_budget(budget_id: BudgetId, services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """A budget with the spend of its current window."""
    async with services.database.read_session() as session:
        budget = await store.read_budget(session, budget_id)
    return await _respond(services, budget)


@router.patch(
    "/budgets/{budget_id}",
    responses={200: schema_ref(BudgetObject, "The budget"), **REFUSALS, **_MISSING},
)
async def change_budget(
    budget_id: BudgetId, body: BudgetChange, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Change the amount, the thresholds or the action."""
    budget = await store.change_budget(
        services.database,
        principal,
        budget_id,
        amount_nano_usd=None if body.amount_usd is None else to_nano_usd(Decimal(body.amount_usd)),
        thresholds=body.thresholds,
        action=None if body.action is None else BudgetAction(body.action),
    )
    await services.budgets.refresh()
    log.info("budget.changed", budget_id=budget.id, name=budget.name)
    return await _respond(services, budget)


@router.delete(
    "/budgets/{budget_id}",
    status_code=204,
    responses={**REFUSALS, **_MISSING},
    response_class=Response,
)
async def delete_budget(
    budget_id: BudgetId, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Delete a budget. Its alerts stay."""
    budget = await store.delete_budget(services.database, principal, budget_id)
    await services.budgets.refresh()
    log.info("budget.deleted", budget_id=budget.id, name=budget.name)
    return Response(status_code=204)


async def _respond(services: Services, budget: Budget, status: int = 200) -> Response:
    async with services.database.read_session() as session:
        (described,) = await describe_budgets(session, [budget], utc_now())
    return json_response(described, status)
