"""Runs Alembic migrations. The only module that imports `alembic`; imported when needed."""

from pathlib import Path

from alembic.config import Config
from sqlalchemy import Connection

from alembic import command


def run_migration(connection: Connection, scripts: Path, revision: str) -> None:
    """Upgrade or downgrade the schema to a revision. `scripts`: the folder with `env.py`."""
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    direction = (
        command.downgrade if revision == "base" or revision.startswith("-") else command.upgrade
    )
    direction(config, revision)
