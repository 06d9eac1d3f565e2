"""`kotae migrate-data`: copy a SQLite database to PostgreSQL."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.database import describe_database
from service.cli.output import show_progress
from service.core.accounting.audit import AuditReport, audit_log
from service.core.database.copying import (
    compare_counts,
    copy_data,
    count_copied,
    count_rows,
    finish_copy,
)
from service.core.database.engine import Database, open_database
from service.core.database.files import is_sqlite
from service.core.database.instance_lock import lock_instance
from service.core.errors import KotaeError, NotFound
from service.core.lazy import LazyModule
from service.core.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.core.database import postgres_lock
else:
    postgres_lock = LazyModule("service.core.database.postgres_lock")


def migrate_data(
    file: Annotated[
        Path | None,
        typer.Argument(help="The SQLite database; by default the one in KOTAE_DATA_DIR."),
    ] = None,
) -> None:
    """Copy a SQLite database to the PostgreSQL database of KOTAE_DATABASE_URL.

    The target must be migrated and empty. An interrupted copy is continued. At the end both are
    audited; exit code 1 if the accounts do not agree.
    """
    settings = load_settings()
    if is_sqlite(settings.database):
        raise KotaeError("KOTAE_DATABASE_URL must name the PostgreSQL database to copy to")
    path = (file or settings.data_dir / "kotae.db").expanduser().resolve()
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    source_settings = settings.model_copy(update={"database_url": f"sqlite+aiosqlite:///{path}"})
    with closing(lock_instance(source_settings, "migrate-data")):
        reports = asyncio.run(_migrate(source_settings, settings, path))
    print(f"copied {path} to {describe_database(settings)}")
    for name, report in zip(("source", "target"), reports, strict=True):
        print(f"{name}: {report.to_text()}")
    if not all(report.agrees for report in reports):
        raise typer.Exit(1)


async def _migrate(
    source_settings: Settings, settings: Settings, path: Path
) -> tuple[AuditReport, AuditReport]:
    """Copy, compare and audit. No service may use either database."""
    source, target = open_database(source_settings), open_database(settings)
    lock = postgres_lock.ServiceLock(settings.database)
    try:
        await source.require_current_schema()
        await target.require_current_schema()
        await lock.acquire()
        await _copy(source, target, str(path))
        data_dir = settings.data_dir
        reports = await audit_log(source, data_dir), await audit_log(target, data_dir)
        await finish_copy(target)
    finally:
        await lock.close()
        await source.close()
        await target.close()
    return reports


async def _copy(source: Database, target: Database, name: str) -> None:
    async with source.read_session() as session:
        total = sum((await count_rows(session)).values())
    with show_progress("Copying", total) as advance:
        advance(await count_copied(target))
        await copy_data(source, target, name, advance)
    if differences := await compare_counts(source, target):
        listed = "; ".join(f"{d.table}: {d.source} and {d.target} rows" for d in differences)
        raise KotaeError(f"the copy differs from its source: {listed}")
