import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable


async def test_a_reading_session_cannot_write(database: Database) -> None:
    """SQLite itself refuses a write in a reading session."""
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        async with database.reading() as session:
            await session.execute(sa.text("DELETE FROM documents"))


async def test_up_and_down(database: Database) -> None:
    """Migrations go down to nothing and up again."""
    assert await database.revision() == ("0008", "0008")
    await database.migrate("base")
    await database.migrate()
    assert await database.revision() == ("0008", "0008")
