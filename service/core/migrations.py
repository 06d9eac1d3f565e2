"""The one door to `alembic`: bringing a schema to a revision. Loaded by `db` when it is asked to migrate, not before."""

from pathlib import Path

from alembic.config import Config
from sqlalchemy import Connection

from alembic import command


def run(connection: Connection, revision: str) -> None:
    """Bring the schema behind this connection to a revision, up or down."""
    config = Config(Path(__file__).parents[2] / "alembic.ini")
    config.attributes["connection"] = connection
    direction = command.downgrade if revision == "base" or revision.startswith("-") else command.upgrade
    direction(config, revision)
