"""`kotae audit`: check the rows against the totals and a provider's export."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.database import with_database
from service.core.accounting.audit import audit_log as compare
from service.core.accounting.audit import read_export
from service.core.settings import load_settings


def audit(
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first day that is looked at.")
    ] = None,
    usage: Annotated[
        Path | None,
        typer.Option(help="A provider's usage export (CSV), to compare tokens by day and model."),
    ] = None,
) -> None:
    """Check the account: rows against totals, and against a provider's export. Ends with 1 if anything differs."""
    loaded = load_settings()
    export = read_export(usage) if usage else None
    day = since.date() if since else None
    report = asyncio.run(
        with_database(
            loaded, lambda database: compare(database, loaded.data_dir, since=day, export=export)
        )
    )
    print(report.to_text())
    raise typer.Exit(0 if report.agrees else 1)
