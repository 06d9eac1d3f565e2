"""Runs Alembic migrations. The only module that imports `alembic`; imported when needed."""

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.schema import SetTableComment

from alembic import command
from service.core.errors import SettingsInvalid


def run_migration(connection: Connection, scripts: Path, versions: Path, revision: str) -> None:
    """Upgrade or downgrade the schema to a revision.

    `scripts`: the folder with `env.py`; `versions`: that of the revisions.

    Raises `SettingsInvalid` for an unknown revision.
    """
    config = _configure(scripts, versions)
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision() or ""
    # Revisions are numbers of equal length in one line of history.
    is_older = revision == "base" or revision.startswith("-") or revision < current
    direction = command.downgrade if is_older else command.upgrade
    try:
        direction(config, revision)
    except CommandError as error:
        raise SettingsInvalid(f"cannot migrate to {revision}: {error}") from error


def find_oldest_compatible(directory: ScriptDirectory, revision: str) -> str:
    """Return the oldest revision whose version of Kotae can use the schema of `revision`.

    Steps that an older version does not notice, such as a new table or a column with a default,
    declare it: `runs_beside_previous = True`.

    Raises `SettingsInvalid` for an unknown revision.
    """
    try:
        steps = list(directory.walk_revisions("base", revision))  # the newest first
    except CommandError as error:
        raise SettingsInvalid(f"cannot migrate to {revision}: {error}") from error
    incompatible = (
        step for step in steps if not getattr(step.module, "runs_beside_previous", False)
    )
    return next(incompatible, steps[-1]).revision


def mark_compatibility(connection: Connection, directory: ScriptDirectory) -> None:
    """Write into the schema which versions can use it: as a comment, which dumps contain."""
    if revision := MigrationContext.configure(connection).get_current_revision():
        oldest = find_oldest_compatible(directory, revision)
        connection.execute(SetTableComment(Table("alembic_version", MetaData(), comment=oldest)))


def open_scripts(scripts: Path, versions: Path) -> ScriptDirectory:
    """The revisions in `versions`."""
    return ScriptDirectory.from_config(_configure(scripts, versions))


def _configure(scripts: Path, versions: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", str(versions))
    return config
