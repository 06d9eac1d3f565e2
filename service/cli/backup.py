"""`kotae backup` and `kotae restore`."""

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from service.cli.database import run_with
from service.core.accounting.audit import AuditReport, audit_log
from service.core.billing.restoring import mark_restored
from service.core.database.backup import create_copy, install_copy, set_aside
from service.core.database.engine import Database
from service.core.database.files import create_private_directory, find_database_file, is_sqlite
from service.core.database.instance_lock import lock_instance
from service.core.encoding import utc_now
from service.core.errors import KotaeError
from service.core.settings import Settings, load_settings


def backup(file: Annotated[Path, typer.Argument(help="File to create.")]) -> None:
    """Copy the database to a file, also while a service runs, and check the copy.

    Exit code 1 if the audit of the copy finds differences; the copy is kept.
    """
    source, target = _find_file(load_settings()), file.expanduser().resolve()
    if target.exists():
        raise KotaeError(f"{target} exists: choose another name, or remove it")
    with create_copy(source, Path(f"{target}.partial"), live=True) as copy:
        report = asyncio.run(_audit_copy(copy))
        megabytes = copy.stat().st_size / 1e6
        install_copy(copy, target)
    print(f"backed up {source} to {target}: {megabytes:.1f} MB, no damage found")
    _exit_unless_agreed(report)


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `kotae backup` created.")],
    force: Annotated[
        bool, typer.Option("--force", help="Restore although the audit finds differences.")
    ] = False,
) -> None:
    """Replace the database by a backup, after checking and migrating it.

    The replaced database keeps its name with the suffix `.before`. Refused while a service runs.
    """
    settings = load_settings()
    source, target = file.expanduser().resolve(), _find_file(settings)
    if source == target:
        raise KotaeError(f"{source} is the database itself")
    with closing(lock_instance(settings, "restore")):
        create_private_directory(target.parent)
        with create_copy(source, Path(f"{target}.restoring"), live=False) as copy:
            report = asyncio.run(_migrate_copy(copy))
            if not report.agrees and not force:
                print(report.to_text())
                raise KotaeError("the accounts of the backup do not agree: use --force to restore")
            before = set_aside(target)
            install_copy(copy, target)
    note = f"; the replaced database is {before}" if before else ""
    print(f"restored {source} to {target}{note}")
    _exit_unless_agreed(report)


def _find_file(settings: Settings) -> Path:
    if (file := find_database_file(settings.database)) is None:
        if not is_sqlite(settings.database):
            raise KotaeError("PostgreSQL has its own programs: use `pg_dump` and `pg_restore`")
        raise KotaeError("the database is not a file")
    return file


async def _audit_copy(copy: Path) -> AuditReport | None:
    """Audit a copy; None if its schema is older than this version's."""

    async def audit(database: Database) -> AuditReport | None:
        return await _audit(database) if await database.is_current() else None

    return await run_with(Database(f"sqlite+aiosqlite:///{copy}"), audit)


async def _migrate_copy(copy: Path) -> AuditReport:
    """Migrate a copy to the newest revision, and audit it."""

    async def migrate(database: Database) -> AuditReport:
        revision, newest = await database.read_revision()
        if revision is None:
            raise KotaeError("the file is not a database of Kotae")
        if revision > newest:
            raise KotaeError(
                f"the backup has revision {revision}, this version knows {newest}: use the version "
                "that created it, or a newer one"
            )
        await database.migrate()
        await mark_restored(database, utc_now())
        return await _audit(database)

    return await run_with(Database(f"sqlite+aiosqlite:///{copy}"), migrate)


async def _audit(database: Database) -> AuditReport:
    with tempfile.TemporaryDirectory() as folder:  # without a journal, which is not in a backup
        return await audit_log(database, Path(folder))


def _exit_unless_agreed(report: AuditReport | None) -> None:
    if report is None:
        print("not audited: the schema is older than this version's; see `kotae migrate`")
    elif not report.agrees:
        print(report.to_text())
        raise typer.Exit(1)
    else:
        print("audit: all agrees")
