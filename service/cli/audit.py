"""`kotae audit`: compare the rows with the totals, a provider's export, and Stripe."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.database import with_database
from service.core.accounting.audit import AuditReport, audit_log
from service.core.accounting.provider_export import Export, read_export
from service.core.accounting.rollups import rebuild_rollups
from service.core.billing.failures import StripeFailed
from service.core.billing.ledger import rebuild_wallets
from service.core.billing.payment_reconciliation import (
    PaymentReconciliation,
    reconcile_payments,
)
from service.core.billing.reconciliation import BillingReconciliation, reconcile_stripe
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import KotaeError, ProviderError
from service.core.lazy import LazyModule, load_module
from service.core.providers.organization import read_organization
from service.core.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.core.billing import stripe as stripe_client
else:
    stripe_client = LazyModule("service.core.billing.stripe")

STRIPE_DAYS = REPORTED_DAYS = 31
REPORTED_DAYS_MAX = 366


def audit(
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day to check.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First compute rollups and balances again.")
    ] = False,
    usage: Annotated[
        Path | None,
        typer.Option(help="Usage export of the provider (CSV), compared by day and model."),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Compare with the usage and costs that this provider reports, such as openai, of"
            " the last 31 days; with --usage, the calls to this provider only."
        ),
    ] = None,
    stripe: Annotated[
        bool,
        typer.Option(
            "--stripe", help="Also compare usage and payments with Stripe, of the last 31 days."
        ),
    ] = False,
) -> None:
    """Compare log rows with totals, a provider and Stripe. Exit code 1 if they differ."""
    loaded = load_settings()
    day = since.date() if since else None
    export = None
    if usage is not None:
        export = read_export(usage, provider)
    elif provider is not None:
        export = asyncio.run(_read_organization(loaded, provider, day))

    async def run(database: Database) -> AuditReport:
        if rebuild:
            await database.require_current_schema()
            await rebuild_rollups(database, day)
            await rebuild_wallets(database)
        return await audit_log(database, loaded.data_dir, since=day, export=export)

    report = asyncio.run(with_database(loaded, run))
    print(report.to_text())
    agrees = report.agrees
    if stripe:
        billed = asyncio.run(with_database(loaded, partial(_reconcile, loaded, day)))
        for result in billed:
            print(f"\n{result.to_text()}")
            agrees = agrees and not result.unexplained
    raise typer.Exit(0 if agrees else 1)


async def _read_organization(settings: Settings, provider: str, day: date | None) -> Export:
    """The account of a provider, without the current day. Raises `KotaeError`."""
    if settings.provider_admin_key is None:
        raise KotaeError("--provider needs KOTAE_PROVIDER_ADMIN_KEY, or --usage")
    until = utc_now().date()
    since = day or until - timedelta(days=REPORTED_DAYS)
    if not 0 < (until - since).days <= REPORTED_DAYS_MAX:
        raise KotaeError(f"--provider compares 1 to {REPORTED_DAYS_MAX} days before today")
    key = settings.provider_admin_key.get_secret_value()
    try:
        return await read_organization(settings.provider_admin_url, key, provider, since, until)
    except ProviderError as error:
        raise KotaeError(f"the provider's account could not be read: {error}") from error


async def _reconcile(
    settings: Settings, day: date | None, database: Database
) -> list[BillingReconciliation | PaymentReconciliation]:
    """Compare the usage of customers, if there is a meter, and payments. Raises `KotaeError`."""
    at = utc_now()
    since = at - timedelta(days=STRIPE_DAYS)
    if day is not None:
        since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if settings.stripe_key is None:
        raise KotaeError("--stripe needs KOTAE_STRIPE_KEY")
    try:
        load_module(stripe_client)
    except ImportError as error:
        raise KotaeError("--stripe needs pip install 'kotae[stripe]'") from error
    connection = stripe_client.StripeConnection(
        settings.stripe_key.get_secret_value(), base_url=settings.stripe_base_url
    )
    results: list[BillingReconciliation | PaymentReconciliation] = []
    try:
        if (meter := settings.stripe_meter) is not None:
            results.append(await reconcile_stripe(database, connection, meter, since, at))
        results.append(await reconcile_payments(database, connection, since))
    except StripeFailed as failure:
        raise KotaeError(f"Stripe could not be read: {failure}") from failure
    finally:
        await connection.aclose()
    return results
