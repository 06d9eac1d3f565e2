"""Runs Alembic migrations. The only module that imports `alembic`; imported when needed."""

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from alembic import command
from service.core.errors import SettingsInvalid


def run_migration(connection: Connection, scripts: Path, versions: Path, revision: str) -> None:
    """Upgrade or downgrade the schema to a revision.

    `scripts`: the folder with `env.py`; `versions`: that of the revisions.

    Raises `SettingsInvalid` for an unknown revision.
    """
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision() or ""
    # Revisions are numbers of equal length in one line of history.
    is_older = revision == "base" or revision.startswith("-") or revision < current
    direction = command.downgrade if is_older else command.upgrade
    try:
        direction(config, revision)
    except CommandError as error:
        raise SettingsInvalid(f"cannot migrate to {revision}: {error}") from error
