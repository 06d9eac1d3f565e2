"""Dependencies of routes: the application's services and the authenticated principal.

Every protected route declares its role and scope with one of the annotations below; a test checks
all routes.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.api.body_budget import BodyBudget
from service.api.query_parameters import check_query
from service.core.accounting.receipt_log import ReceiptLog
from service.core.answering.answers import Answers
from service.core.answering.embedding_calls import EmbeddingCalls
from service.core.audit_log import ReadRecorder
from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials
from service.core.auth.origin import check_csrf
from service.core.auth.principals import Principal, Role, Scope
from service.core.auth.revocation import RevocationMonitor
from service.core.billing.checkout import Checkout
from service.core.billing.credit import CreditQuota
from service.core.billing.reconciliation import RecentReconciliation
from service.core.budgets.enforcement import BudgetEnforcer
from service.core.database.engine import Database
from service.core.documents.library import ChunkWorkers, FileReaders
from service.core.fair_share import BoundedTurns, SharedLimit, current_user
from service.core.limits import ServiceLimits
from service.core.ports import Peers, Quota, RecordQueue, Tickets, Worker
from service.core.providers.routes import Routes
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.core.telemetry import Metrics

COOKIE = "kotae"


@dataclass(frozen=True)
class Services:
    """Everything that routes use; created once, in `service.main`."""

    settings: Settings
    limits: ServiceLimits
    database: Database
    reads: ReadRecorder
    queue: RecordQueue
    workers: Mapping[str, Worker]
    chunk_workers: ChunkWorkers
    file_readers: FileReaders
    body_budget: BodyBudget
    upload_budget: BodyBudget
    uploads: SharedLimit
    searches: SharedLimit
    analytics: BoundedTurns
    open_requests: SharedLimit
    authenticator: Authenticator
    revocation: RevocationMonitor
    quota: Quota
    budgets: BudgetEnforcer
    answers: Answers
    receipts: ReceiptLog
    checkout: Checkout | None
    reconciliation: RecentReconciliation | None
    credit: CreditQuota
    embedding_calls: EmbeddingCalls
    routes: Routes
    retrieval: SearchService
    tickets: Tickets
    peers: Peers
    metrics: Metrics


async def get_services(request: Request) -> Services:
    """The services, from the lifespan state."""
    services: Services = request.state.services
    return services


def read_trace_headers(request: Request) -> dict[str, str]:
    """The W3C trace context of a request."""
    headers = request.scope["kotae.headers"]
    names = ("traceparent", "tracestate")
    return {name: headers[key] for name in names if (key := name.encode()) in headers}


def require_role(
    role: Role, scope: Scope | None, *, any_query: bool = False
) -> Callable[[Request], Awaitable[Principal]]:
    """Create a dependency that returns the principal if it has this role and scope (or any).

    The dependency raises `Unauthorized`, `Forbidden` or `ForeignOrigin`, and, unless `any_query`,
    `RequestValidationError` for query parameters that the route does not have.
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
        if not any_query:
            await check_query(request)
        current_user.set(found_principal.user_id)
        return found_principal

    principal.requires = (role, scope)  # type: ignore[attr-defined]  # read by the test of all routes
    return principal


def read_credentials(request: Request) -> Credentials:
    """The credentials of a request."""
    headers = request.headers
    return Credentials(
        authorization=headers.getlist("authorization"),
        api_key=headers.getlist("x-api-key"),
        session=_read_session(request) if "cookie" in headers else None,
    )


def get_cookie_name(root_path: str, *, secure: bool) -> str:
    """The name of the session cookie; browsers restrict the names with a prefix to TLS.

    `__Host-` also requires the path `/`.
    """
    if not secure:
        return COOKIE
    return f"__Secure-{COOKIE}" if root_path else f"__Host-{COOKIE}"


def _read_session(request: Request) -> str | None:
    """The first cookie of that name: browsers send the one with the longest path first."""
    scope = request.scope
    cookie = get_cookie_name(scope["root_path"], secure=scope["scheme"] == "https")
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.partition("=")
            if name.strip() == cookie:
                return value.strip()
    return None


ServicesDep = Annotated[Services, Depends(get_services)]
AnyPrincipal = Annotated[Principal, Depends(require_role(Role.USER, None))]
AskPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.ASK))]
AnyQueryAskPrincipal = Annotated[
    Principal, Depends(require_role(Role.USER, Scope.ASK, any_query=True))
]
LogsPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.LOGS))]
DocumentsPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.DOCUMENTS))]
KeysPrincipal = Annotated[Principal, Depends(require_role(Role.USER, Scope.KEYS))]
require_metrics = require_role(Role.ADMIN, Scope.LOGS, any_query=True)
AdminLogsPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.LOGS))]
MetricsPrincipal = Annotated[Principal, Depends(require_metrics)]
AdminDocumentsPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.DOCUMENTS))]
AdminKeysPrincipal = Annotated[Principal, Depends(require_role(Role.ADMIN, Scope.KEYS))]
