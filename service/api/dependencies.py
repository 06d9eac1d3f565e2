"""What routes ask for: the services of this service, and who is asking.

Every route that is not for everybody says with one of the annotations below which role and which scope it takes; a test
goes through all of them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.core.answering.answers import Answers
from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials
from service.core.auth.origin import check_csrf
from service.core.auth.principals import Principal, Role, Scope
from service.core.auth.revocation import RevocationMonitor
from service.core.database.engine import Database
from service.core.documents.library import ChunkWorkers
from service.core.limits import ServiceLimits
from service.core.ports import RecordQueue, Tickets, Worker
from service.core.quota.local import LocalQuota
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.telemetry import Metrics

COOKIE, SECURE_COOKIE = "kotae", "__Host-kotae"  # the second where there is TLS


@dataclass(frozen=True)
class Services:
    """Everything that a route may use; made once, in `service.main`."""

    settings: Settings
    limits: ServiceLimits
    database: Database
    queue: RecordQueue
    workers: Mapping[str, Worker]
    chunk_workers: ChunkWorkers
    authenticator: Authenticator
    revocation: RevocationMonitor
    quota: LocalQuota
    answers: Answers
    retrieval: SearchService
    tickets: Tickets
    metrics: Metrics


async def get_services(request: Request) -> Services:
    """The services, from the lifespan's state."""
    found: Services = request.state.services
    return found


def require_role(role: Role, scope: Scope | None) -> Callable[[Request], Awaitable[Principal]]:
    """The principal of a request, if it has this role and scope; any scope will do for None.

    The dependency raises `Unauthorized`, `Forbidden` or `ForeignOrigin`.
    """

    async def principal(request: Request) -> Principal:
        found: Principal = await request.state.services.authenticator.authenticate(
            read_credentials(request)
        )
        if found.credential.startswith("session:"):
            headers = request.headers
            check_csrf(
                method=request.method,
                origin=headers.get("origin"),
                fetch_site=headers.get("sec-fetch-site"),
                accept=headers.get("accept", ""),
            )
        if scope is not None:
            found.require_scope(role, scope)
        return found

    principal.requires = (role, scope)  # type: ignore[attr-defined]  # what the matrix of routes is made from
    return principal


def read_credentials(request: Request) -> Credentials:
    """The credentials that a request carries."""
    headers = request.headers
    name = SECURE_COOKIE if request.scope["scheme"] == "https" else COOKIE
    return Credentials(
        authorization=headers.getlist("authorization"),
        api_key=headers.getlist("x-api-key"),
        session=request.cookies.get(name) if "cookie" in headers else None,
    )


ServicesDep = Annotated[Services, Depends(get_services)]
Whoever = Annotated[Principal, Depends(require_role(Role.USER, None))]
Asking = Annotated[Principal, Depends(require_role(Role.USER, Scope.ASK))]
Reading = Annotated[Principal, Depends(require_role(Role.USER, Scope.LOGS))]
Documenting = Annotated[Principal, Depends(require_role(Role.USER, Scope.DOCUMENTS))]
Keying = Annotated[Principal, Depends(require_role(Role.USER, Scope.KEYS))]
AdminReading = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.LOGS))]
AdminDocumenting = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.DOCUMENTS))]
AdminKeying = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.KEYS))]
