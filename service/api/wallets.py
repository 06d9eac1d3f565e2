"""Wallets: balance, entries and invoices of a user, top-ups, and amounts that admins add."""

from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.dependencies import (
    AdminKeysPrincipal,
    KeysPrincipal,
    LogsPrincipal,
    Services,
    ServicesDep,
)
from service.api.fast_route import KEY
from service.api.json_bodies import BodyRoute
from service.api.responses import json_response
from service.api.schemas import (
    REFUSALS,
    CheckoutBody,
    GrantBody,
    UserId,
    problem_schemas,
    schema_ref,
)
from service.api.shapes import PortalSession, WalletAccount
from service.core.auth.principals import Principal
from service.core.billing import accounts
from service.core.billing.accounts import EntryObject, WalletPage
from service.core.billing.checkout import Checkout, CreatedSession, Invoice, TopUpOptions
from service.core.billing.ledger import EntryKind
from service.core.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    StripeRefused,
    StripeUnavailable,
)
from service.core.pricing import ChargeTerms, format_markup, format_usd, to_nano_usd
from service.core.telemetry import log

router = APIRouter(prefix="/billing", tags=["wallets"], route_class=BodyRoute)

PAGE_MAX, PAGE = 200, 50
_FOREIGN = problem_schemas(_404="`not_found`: another user's")
_DISABLED = problem_schemas(
    _404="`not_found`: KOTAE_STRIPE_KEY or KOTAE_PUBLIC_URL is not set, or there are no payments",
    _502="`stripe_refused`: the log of the service says why",
    _503="`stripe_unavailable`: nothing was charged; `overloaded`",
)
_AMOUNT = problem_schemas(_400="`amount_invalid`: outside of its bounds, or not in whole cents")
_GRANT = problem_schemas(
    _400="`amount_invalid`: 0, or a grant below it",
    _409="`idempotency_conflict`: the key was used for something else",
)
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
EntryCursor = Annotated[
    str | None,
    Query(max_length=36, pattern=r"^[0-9a-f-]+$", description="`next_cursor` of the previous page"),
]


async def require_idempotency_key(
    request: Request,
    key: Annotated[
        str,
        Header(
            alias="Idempotency-Key",
            description="A repeated request with this key adds nothing. 1 to 255 visible ASCII "
            "characters.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        ),
    ],
) -> str:
    """The idempotency key of a request. Raises `InvalidRequest`."""
    if not KEY.fullmatch(key) or len(request.headers.getlist("Idempotency-Key")) > 1:
        raise InvalidRequest(
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters"
        )
    return key


@router.get(
    "", responses={200: schema_ref(WalletAccount, "Balance, entries"), **REFUSALS, **_FOREIGN}
)
async def get_account(
    services: ServicesDep,
    principal: LogsPrincipal,
    user_id: Annotated[UserId | None, Query(description="Another user; requires an admin")] = None,
    cursor: EntryCursor = None,
    limit: Limit = PAGE,
) -> Response:
    """The balance of a user, a page of its entries, and the latest invoices.

    Without a cursor the invoices are fetched from Stripe; if that fails, the rest is returned.
    """
    subject_id = _resolve_user(principal, user_id)
    funds = await services.credit.read_funds(subject_id)
    terms = await _read_terms(services, principal, subject_id)
    async with services.database.read_session() as session:
        page = await accounts.read_entries(session, subject_id, cursor=cursor, limit=limit)
    invoices, error = await _list_invoices(services, subject_id if cursor is None else None)
    checkout = services.checkout
    return json_response(
        {
            "user_id": subject_id,
            "balance": format_usd(funds.balance),
            "held": format_usd(funds.held),
            "available": format_usd(max(funds.balance - funds.held, 0)),
            "currency": "usd",
            "prepaid": terms.prepaid,
            "markup": None if terms.markup is None else format_markup(terms.markup),
            "entries": page.items,
            "next_cursor": page.next_cursor,
            "invoices": invoices,
            **({} if error is None else {"invoices_error": error}),
            "checkout": checkout is not None,
            "portal": checkout is not None and await checkout.has_customer(subject_id),
            **({} if checkout is None else _describe_bounds(checkout.options)),
        }
    )


async def _read_terms(services: Services, principal: Principal, user_id: str) -> ChargeTerms:
    if user_id == principal.user_id:
        return principal.terms or ChargeTerms()
    return (await services.authenticator.read_subject(user_id)).terms or ChargeTerms()


def _describe_bounds(options: TopUpOptions) -> dict[str, str]:
    """The bounds of a top-up."""
    return {
        "top_up_min": format_usd(to_nano_usd(options.usd_min)),
        "top_up_max": format_usd(to_nano_usd(options.usd_max)),
    }


async def _list_invoices(
    services: Services, user_id: str | None
) -> tuple[list[Invoice] | None, str | None]:
    """The invoices of a user, or the code of the error."""
    if services.checkout is None or user_id is None:
        return None, None
    try:
        return await services.checkout.list_invoices(user_id), None
    except (StripeUnavailable, StripeRefused, Overloaded) as error:
        return None, error.code


@router.post(
    "/checkout",
    status_code=201,
    responses={
        201: schema_ref(CreatedSession, "The page at which to pay"),
        **REFUSALS,
        **_AMOUNT,
        **_DISABLED,
    },
)
async def create_checkout(
    body: CheckoutBody, services: ServicesDep, principal: KeysPrincipal
) -> Response:
    """Begin a top-up. The amount is credited when Stripe reports that it was paid."""
    checkout = _require_checkout(services)
    created = await checkout.create_session(principal.user_id, Decimal(body.amount))
    log.info("checkout.created", session_id=created.session_id, usd=body.amount)
    return json_response(created, 201)


@router.post(
    "/portal",
    responses={200: schema_ref(PortalSession, "The page of Stripe"), **REFUSALS, **_DISABLED},
)
async def create_portal(services: ServicesDep, principal: KeysPrincipal) -> Response:
    """The page at which a user who has paid sees payment methods and invoices."""
    url = await _require_checkout(services).create_portal(principal.user_id)
    return json_response({"url": url})


@router.get("/wallets", responses={200: schema_ref(WalletPage, "By user"), **REFUSALS})
async def list_wallets(
    services: ServicesDep,
    _: AdminKeysPrincipal,
    cursor: Annotated[UserId | None, Query()] = None,
    limit: Limit = PAGE,
) -> Response:
    """The balances of all users."""
    async with services.database.read_session() as session:
        return json_response(await accounts.read_wallets(session, cursor=cursor, limit=limit))


@router.post(
    "/grants",
    status_code=201,
    responses={201: schema_ref(EntryObject, "The entry"), **REFUSALS, **_GRANT},
)
async def create_grant(
    body: GrantBody,
    services: ServicesDep,
    principal: AdminKeysPrincipal,
    key: Annotated[str, Depends(require_idempotency_key)],
) -> Response:
    """Add an amount to a wallet, or correct it, once for an idempotency key."""
    entry = await accounts.add_grant(
        services.database,
        principal,
        key,
        user_id=body.user_id,
        kind=EntryKind(body.kind),
        usd=Decimal(body.amount),
        note=body.note,
    )
    log.info("wallet.credited", user_id=body.user_id, kind=body.kind, usd=body.amount)
    return json_response(accounts.describe_entry(entry), 201)


def _require_checkout(services: Services) -> Checkout:
    if services.checkout is None:
        raise NotFound("top-ups are not enabled")
    return services.checkout


def _resolve_user(principal: Principal, user_id: str | None) -> str:
    """The user of a request. Raises `NotFound` for another one, unless the caller is an admin."""
    if user_id is None or user_id == principal.user_id:
        return principal.user_id
    if not principal.is_admin:
        raise NotFound("no such user")
    return user_id
