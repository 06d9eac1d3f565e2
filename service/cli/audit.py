"""`kotae audit`: compare the rows with the totals and with a provider's export."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.database import with_database
from service.core.accounting.audit import AuditReport, audit_log
from service.core.accounting.provider_export import read_export
from service.core.accounting.rollups import rebuild_rollups
from service.core.database.engine import Database
from service.core.settings import load_settings


def audit(
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day to check.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First compute the rollups from the rows again.")
    ] = False,
    usage: Annotated[
        Path | None,
        typer.Option(help="Usage export of the provider (CSV), compared by day and model."),
    ] = None,
) -> None:
    """Compare log rows with totals and a provider's export. Exit code 1 if they differ."""
    loaded = load_settings()
    export = read_export(usage) if usage else None
    day = since.date() if since else None

    async def run(database: Database) -> AuditReport:
        if rebuild:
            await database.require_current_schema()
            await rebuild_rollups(database, day)
        return await audit_log(database, loaded.data_dir, since=day, export=export)

    report = asyncio.run(with_database(loaded, run))
    print(report.to_text())
    raise typer.Exit(0 if report.agrees else 1)
