"""Usage and limits: GET /ai/usage, the quotas of users, plans, and disabling users."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from service.api.dependencies import AdminKeysPrincipal, LogsPrincipal, ServicesDep
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    Day,
    PlanBody,
    PlanName,
    QuotaBody,
    UserBody,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.api.shapes import (
    ErasedTexts,
    PlanList,
    PlanSettings,
    UsageReport,
    UserPage,
    UserQuota,
    UserSettings,
)
from service.core.auth import store
from service.core.auth.principals import Principal, Role
from service.core.errors import InvalidRequest, NotFound
from service.core.ports import QuotaLimits, QuotaSubject, QuotaWindow
from service.core.pricing import format_markup, format_usd
from service.core.quota import history
from service.core.telemetry import log

router = APIRouter(prefix="/ai", tags=["quotas"], route_class=BodyRoute)

USERS_PAGE = 200
_MISSING = problem_schemas(_404="`not_found`: no such user or plan, or another user's")
UserPath = Annotated[UserId, Path()]
PlanPath = Annotated[PlanName, Path()]


@router.get(
    "/usage",
    responses={200: schema_ref(UsageReport, "Limits, usage, totals"), **REFUSALS, **_MISSING},
)
async def get_usage(
    services: ServicesDep,
    principal: LogsPrincipal,
    user_id: Annotated[UserId | None, Query(description="Another user; requires an admin")] = None,
    since: Annotated[
        Day | None, Query(description="Inclusive; default: first of this month")
    ] = None,
    until: Annotated[Day | None, Query(description="Exclusive; default: tomorrow")] = None,
) -> Response:
    """Used and held amounts of each limit, all usage, and totals by day, model and endpoint."""
    subject_id = _resolve_user_id(principal, user_id)
    today = datetime.now(UTC).date()
    since, until = since or today.replace(day=1), until or today + timedelta(days=1)
    if not timedelta(0) < until - since <= timedelta(days=history.DAYS_MAX):
        raise InvalidRequest(f"until must be after since, by at most {history.DAYS_MAX} days")
    subjects = principal.quota_subjects
    if subject_id != principal.user_id:
        subjects = (await services.authenticator.read_subject(subject_id),)
    async with services.database.read_session() as session:
        totals = await history.read_totals(session, user_id=subject_id, since=since, until=until)
    user = QuotaSubject.for_user(subject_id)
    await services.quota.refresh([*subjects, user])
    used = {
        name.replace("nano_usd", "usd"): {
            "used": _format_amount(name, used),
            "held": _format_amount(name, held),
        }
        for name, (used, held) in services.quota.get_usage(user.name).items()
    }
    limits = [_format_window(window) for window in services.quota.windows(subjects)]
    return json_response(
        {
            "user_id": subject_id,
            "limits": limits,
            "used": used,
            "since": since,
            "until": until,
            "totals": totals,
        }
    )


@router.get("/users", responses={200: schema_ref(UserPage, "Users, by id"), **REFUSALS})
async def list_users(
    services: ServicesDep,
    _: AdminKeysPrincipal,
    cursor: Annotated[UserId | None, Query()] = None,
    q: Annotated[UserId | None, Query(description="A part of the id, in any case")] = None,
) -> Response:
    """Users that have keys, a quota or are disabled, by id."""
    async with services.database.read_session() as session:
        users = await store.list_users(session, limit=USERS_PAGE + 1, after=cursor or "", part=q)
    items = users[:USERS_PAGE]
    return json_response(
        {
            "items": [_format_user(user) for user in items],
            "next_cursor": items[-1].id if len(users) > USERS_PAGE else None,
        }
    )


@router.put("/users/{user_id}", responses={200: schema_ref(UserSettings, "The user"), **REFUSALS})
async def put_user(
    user_id: UserPath, body: UserBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Disable or enable a user: requests are refused immediately, streams end within 5 seconds."""
    _check_same("user_id", user_id, body.user_id)
    user = await store.put_user(services.database, principal, user_id, disabled=body.disabled)
    services.authenticator.clear_cache()
    log.info("user.changed", disabled=body.disabled)
    return json_response(_format_user(user))


@router.delete(
    "/users/{user_id}/texts",
    responses={200: schema_ref(ErasedTexts, "The number of rows"), **REFUSALS},
)
async def erase_texts(
    user_id: UserPath, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Erase the texts of all ended answers of a user; the accounts remain. Idempotent and final."""
    erased = await services.answers.erase_user(user_id, principal)
    log.info("texts.erased", rows=erased, erased_by=principal.user_id)
    return json_response({"user_id": user_id, "erased": erased})


@router.get(
    "/users/{user_id}/quota",
    responses={200: schema_ref(UserQuota, "The user and the limits"), **REFUSALS, **_MISSING},
)
async def get_quota(user_id: UserPath, services: ServicesDep, principal: LogsPrincipal) -> Response:
    """The limits in force for a user: their own, or those of their plan."""
    subject_id = _resolve_user_id(principal, user_id)
    async with services.database.read_session() as session:
        user = await store.get_user(session, subject_id)
        row = await store.find_user(session, subject_id)
    return json_response(
        _format_user(user) | {"in_force": _format_limits(store.get_user_limits(row, Role.USER))}
    )


@router.put(
    "/users/{user_id}/quota",
    responses={200: schema_ref(UserSettings, "The user"), **REFUSALS, **_MISSING},
)
async def put_quota(
    user_id: UserPath, body: QuotaBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Assign a plan or individual limits to a user. Takes effect immediately."""
    _check_same("user_id", user_id, body.user_id)
    if body.plan is not None and body.limits is not None:
        raise InvalidRequest("plan and limits exclude each other")
    limits = body.limits.to_limits() if body.limits is not None else None
    user = await store.put_user(
        services.database, principal, user_id, plan=body.plan, limits=limits
    )
    services.authenticator.clear_cache()
    return json_response(_format_user(user))


@router.get("/plans", responses={200: schema_ref(PlanList, "All plans"), **REFUSALS})
async def list_plans(services: ServicesDep, _: AdminKeysPrincipal) -> Response:
    """All plans. The one named `default` applies to users without a plan."""
    async with services.database.read_session() as session:
        plans = await store.list_plans(session)
    return json_response({"items": [_format_plan(name, plan) for name, plan in plans.items()]})


@router.put("/plans/{name}", responses={200: schema_ref(PlanSettings, "The plan"), **REFUSALS})
async def put_plan(
    name: PlanPath, body: PlanBody, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Create or change a plan."""
    _check_same("name", name, body.name)
    plan = store.UserPlan(limits=body.to_limits(), prepaid=body.prepaid, markup=body.markup)
    await store.put_plan(
        services.database, principal, name, plan.limits, prepaid=plan.prepaid, markup=plan.markup
    )
    services.authenticator.clear_cache()
    return json_response(_format_plan(name, plan))


@router.delete(
    "/plans/{name}", status_code=204, responses={**REFUSALS, **_MISSING}, response_class=Response
)
async def delete_plan(
    name: PlanPath, services: ServicesDep, principal: AdminKeysPrincipal
) -> Response:
    """Delete a plan; its users fall back to the default plan."""
    await store.delete_plan(services.database, principal, name)
    services.authenticator.clear_cache()
    return Response(status_code=204)


def _resolve_user_id(principal: Principal, user_id: str | None) -> str:
    """The user that a request is about. Raises `NotFound` for other users' data."""
    if user_id is not None and principal.visible_user_id not in {None, user_id}:
        raise NotFound("no such user")
    return user_id or principal.user_id


def _check_same(field: str, in_path: str, in_body: str | None) -> None:
    """Raises `InvalidRequest` if a body names another user or plan than the URL."""
    if in_body is not None and in_body != in_path:
        raise InvalidRequest(f"{field} in the body is not the one in the URL")


def _format_window(window: QuotaWindow) -> dict[str, Any]:
    left = max(0, window.limit - window.used - window.held)
    amounts = {"limit": window.limit, "used": window.used, "held": window.held, "left": left}
    return {
        "name": window.name,
        "of": window.of,
        **{name: _format_amount(window.unit, value) for name, value in amounts.items()},
        "reset_seconds": window.reset_seconds,
    }


def _format_amount(name: str, value: int) -> int | str:
    return format_usd(value) if "nano" in name else value


def _format_plan(name: str, plan: store.UserPlan) -> dict[str, Any]:
    return {
        "name": name,
        "limits": plan.limits.to_wire(),
        "prepaid": plan.prepaid,
        "markup": None if plan.markup is None else format_markup(plan.markup),
    }


def _format_user(user: store.User) -> dict[str, Any]:
    return {
        "user_id": user.id,
        "disabled": user.disabled,
        "plan": user.plan,
        "limits": _format_limits(user.limits),
    }


def _format_limits(limits: QuotaLimits | None) -> dict[str, int | str] | None:
    return None if limits is None else limits.to_wire()
