"""How much: GET /ai/usage, the quotas of users, plans, and whether a user may ask at all."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from service.api.dependencies import AdminKeying, Reading, ServicesDep
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    LimitsBody,
    PlanName,
    QuotaBody,
    UserBody,
    UserId,
    problem_schemas,
)
from service.core.auth import store
from service.core.auth.principals import Principal, Role
from service.core.errors import InvalidRequest, NotFound
from service.core.ports import QuotaLimits, QuotaSubject, QuotaWindow
from service.core.pricing import format_usd
from service.core.quota import history
from service.core.telemetry import log

router = APIRouter(prefix="/ai", tags=["quotas"], route_class=BodyRoute)

USERS_PAGE = 200
_MISSING = problem_schemas(_404="`not_found`: no such user or plan, or not yours")
_OK: dict[int | str, dict[str, Any]] = {
    200: {"description": "See docs/reference/api.md"},
    **REFUSALS,
}
UserPath = Annotated[UserId, Path()]
PlanPath = Annotated[PlanName, Path()]


@router.get("/usage", responses={**_OK, **_MISSING})
async def get_usage(
    services: ServicesDep,
    principal: Reading,
    user_id: Annotated[UserId | None, Query(description="Another user's; for admins")] = None,
    since: Annotated[
        date | None, Query(description="Inclusive; the first of this month if absent")
    ] = None,
    until: Annotated[date | None, Query(description="Exclusive; tomorrow if absent")] = None,
) -> Response:
    """What is used and held of each limit, what is used beside, and totals by day, model and endpoint."""
    about = _about(principal, user_id)
    today = datetime.now(UTC).date()
    since, until = since or today.replace(day=1), until or today + timedelta(days=1)
    if not timedelta(0) < until - since <= timedelta(days=history.DAYS_MAX):
        raise InvalidRequest(f"until must come after since, by {history.DAYS_MAX} days at most")
    subjects = principal.quota_subjects
    if about != principal.user_id:
        subjects = (QuotaSubject.for_user(about, await services.authenticator.read_limits(about)),)
    async with services.database.read_session() as session:
        totals = await history.read_totals(session, user_id=about, since=since, until=until)
    used = {
        name.replace("nano_usd", "usd"): {"used": _money(name, used), "held": _money(name, held)}
        for name, (used, held) in services.quota.used(QuotaSubject.for_user(about).name).items()
    }
    limits = [_window(window) for window in services.quota.windows(subjects)]
    return json_response(
        {
            "user_id": about,
            "limits": limits,
            "used": used,
            "since": since,
            "until": until,
            "totals": totals,
        }
    )


@router.get("/users", responses=_OK)
async def list_users(
    services: ServicesDep, _: AdminKeying, cursor: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """The users of whom more is known than their name: who has keys, a quota, or is disabled. By id."""
    async with services.database.read_session() as session:
        found = await store.list_users(session, limit=USERS_PAGE + 1, after=cursor)
    items = found[:USERS_PAGE]
    return json_response(
        {
            "items": [_user(user) for user in items],
            "next_cursor": items[-1].id if len(found) > USERS_PAGE else None,
        }
    )


@router.put("/users/{user_id}", responses=_OK)
async def put_user(
    user_id: UserPath, body: UserBody, services: ServicesDep, _: AdminKeying
) -> Response:
    """Disable a user, whatever their credentials: no request is taken from now on, open streams end within five seconds."""
    user = await store.put_user(services.database, user_id, disabled=body.disabled)
    services.authenticator.clear_cache()
    log.info("user.changed", disabled=body.disabled)
    return json_response(_user(user))


@router.get("/users/{user_id}/quota", responses={**_OK, **_MISSING})
async def get_quota(user_id: UserPath, services: ServicesDep, principal: Reading) -> Response:
    """The limits in force for a user: their own, or their plan's."""
    about = _about(principal, user_id)
    async with services.database.read_session() as session:
        user = await store.get_user(session, about)
        row = await store.find_user(session, about)
    return json_response(_user(user) | {"in_force": _limits(store.user_limits(row, Role.USER))})


@router.put("/users/{user_id}/quota", responses={**_OK, **_MISSING})
async def put_quota(
    user_id: UserPath, body: QuotaBody, services: ServicesDep, _: AdminKeying
) -> Response:
    """Give a user a plan, or limits of their own. In force at once."""
    if body.plan is not None and body.limits is not None:
        raise InvalidRequest("give a plan or limits, not both")
    limits = body.limits.limits() if body.limits is not None else None
    user = await store.put_user(services.database, user_id, plan=body.plan, limits=limits)
    services.authenticator.clear_cache()
    return json_response(_user(user))


@router.get("/plans", responses=_OK)
async def list_plans(services: ServicesDep, _: AdminKeying) -> Response:
    """Every plan. The one named `default` is for users who have none."""
    async with services.database.read_session() as session:
        plans = await store.list_plans(session)
    return json_response(
        {"items": [{"name": name, "limits": limits.to_wire()} for name, limits in plans.items()]}
    )


@router.put("/plans/{name}", responses=_OK)
async def put_plan(
    name: PlanPath, body: LimitsBody, services: ServicesDep, _: AdminKeying
) -> Response:
    """Make or change a plan."""
    await store.put_plan(services.database, name, body.limits())
    services.authenticator.clear_cache()
    return json_response({"name": name, "limits": body.limits().to_wire()})


@router.delete(
    "/plans/{name}", status_code=204, responses={**REFUSALS, **_MISSING}, response_class=Response
)
async def delete_plan(name: PlanPath, services: ServicesDep, _: AdminKeying) -> Response:
    """Delete a plan; whoever had it has the default one."""
    await store.delete_plan(services.database, name)
    services.authenticator.clear_cache()
    return Response(status_code=204)


def _about(principal: Principal, user_id: str | None) -> str:
    """Whom a question is about. Raises `NotFound` for somebody else."""
    if user_id is not None and principal.visible_user_id not in {None, user_id}:
        raise NotFound("no such user")
    return user_id or principal.user_id


def _window(window: QuotaWindow) -> dict[str, Any]:
    left = max(0, window.limit - window.used - window.held)
    amounts = {"limit": window.limit, "used": window.used, "held": window.held, "left": left}
    return {
        "name": window.name,
        "of": window.of,
        **{name: _money(window.unit, value) for name, value in amounts.items()},
        "reset_seconds": window.reset_seconds,
    }


def _money(name: str, value: int) -> int | str:
    return format_usd(value) if "nano" in name else value


def _user(user: store.User) -> dict[str, Any]:
    return {
        "user_id": user.id,
        "disabled": user.disabled,
        "plan": user.plan,
        "limits": _limits(user.limits),
    }


def _limits(limits: QuotaLimits | None) -> dict[str, int | str] | None:
    return None if limits is None else limits.to_wire()
