"""Dependencies of routes: the application's services and the authenticated principal.

Every protected route declares its role and scope with one of the annotations below; a test checks
all routes.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.api.body_budget import BodyBudget
from service.core.answering.answers import Answers
from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials
from service.core.auth.origin import check_csrf
from service.core.auth.principals import Principal, Role, Scope
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.documents.library import ChunkWorkers, FileReaders
from service.core.limits import ServiceLimits
from service.core.ports import RecordQueue, Tickets, Worker
from service.core.quota.local import LocalQuota
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.telemetry import Metrics

COOKIE, SECURE_COOKIE = "kotae", "__Host-kotae"  # the second over TLS


@dataclass(frozen=True)
class Services:
    """Everything that routes use; created once, in `service.main`."""

    settings: Settings
    limits: ServiceLimits
    database: Database
    queue: RecordQueue
    workers: Mapping[str, Worker]
    chunk_workers: ChunkWorkers
    file_readers: FileReaders
    body_budget: BodyBudget
    upload_budget: BodyBudget
    authenticator: Authenticator
    revocation: RevocationMonitor
    quota: LocalQuota
    answers: Answers
    retrieval: SearchService
    tickets: Tickets
    metrics: Metrics


async def get_services(request: Request) -> Services:
    """The services, from the lifespan state."""
    services: Services = request.state.services
    return services


def require_role(role: Role, scope: Scope | None) -> Callable[[Request], Awaitable[Principal]]:
    """Create a dependency that returns the principal if it has this role and scope (or any).

    The dependency raises `Unauthorized`, `Forbidden` or `ForeignOrigin`.
    """

    async def principal(request: Request) -> Principal:
        found_principal: Principal = await request.state.services.authenticator.authenticate(
            read_credentials(request)
        )
        if found_principal.credential.startswith("session:"):
            headers = request.headers
            check_csrf(
                method=request.method,
                origin=headers.get("origin"),
                fetch_site=headers.get("sec-fetch-site"),
                accept=headers.get("accept", ""),
            )
        if scope is not None:
            found_principal.require_scope(role, scope)
        return found_principal

    principal.requires = (role, scope)  # type: ignore[attr-defined]  # read by the test of all routes
    return principal


def read_credentials(request: Request) -> Credentials:
    """The credentials of a request."""
    headers = request.headers
    name = SECURE_COOKIE if request.scope["scheme"] == "https" else COOKIE
    return Credentials(
        authorization=headers.getlist("authorization"),
        api_key=headers.getlist("x-api-key"),
        session=request.cookies.get(name) if "cookie" in headers else None,
    )


ServicesDep = Annotated[Services, Depends(get_services)]
AnyPrincipal = Annotated[Principal, Depends(require_role(Role.USER, None))]
AskPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.ASK))]
LogsPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.LOGS))]
DocumentsPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.DOCUMENTS))]
KeysPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.KEYS))]
AdminLogsPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.LOGS))]
AdminDocumentsPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.DOCUMENTS))]
AdminKeysPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.KEYS))]
