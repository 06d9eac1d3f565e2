"""`kotae audit`: compare the rows with the totals and with a provider's export."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.database import with_database
from service.core.accounting.audit import audit_log, read_export
from service.core.settings import load_settings


def audit(
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day to check.")
    ] = None,
    usage: Annotated[
        Path | None,
        typer.Option(help="Usage export of the provider (CSV), compared by day and model."),
    ] = None,
) -> None:
    """Compare log rows with totals and a provider's export. Exit code 1 if they differ."""
    loaded = load_settings()
    export = read_export(usage) if usage else None
    day = since.date() if since else None
    report = asyncio.run(
        with_database(
            loaded, lambda database: audit_log(database, loaded.data_dir, since=day, export=export)
        )
    )
    print(report.to_text())
    raise typer.Exit(0 if report.agrees else 1)
