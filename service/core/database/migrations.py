"""The one door to `alembic`: bringing a schema to a revision. Loaded by `db` when it is asked to migrate, not before."""

from alembic.config import Config
from sqlalchemy import Connection

from alembic import command
from service.core.database.engine import MIGRATIONS


def run(connection: Connection, revision: str) -> None:
    """Bring the schema behind this connection to a revision, up or down."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    direction = command.downgrade if revision == "base" or revision.startswith("-") else command.upgrade
    direction(config, revision)
