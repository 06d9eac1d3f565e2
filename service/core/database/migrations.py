"""Bringing a schema to a revision: the only module that imports `alembic`. Loaded when needed."""

from pathlib import Path

from alembic.config import Config
from sqlalchemy import Connection

from alembic import command


def run_migration(connection: Connection, scripts: Path, revision: str) -> None:
    """Bring the schema behind this connection to a revision, up or down.

    `scripts` is the folder of Alembic's `env.py`.
    """
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    direction = (
        command.downgrade if revision == "base" or revision.startswith("-") else command.upgrade
    )
    direction(config, revision)
