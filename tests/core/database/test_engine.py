import ast
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable


async def test_a_reading_session_cannot_write(database: Database) -> None:
    """SQLite itself refuses a write in a reading session."""
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        async with database.read_session() as session:
            await session.execute(sa.text("DELETE FROM documents"))


async def test_up_and_down(database: Database) -> None:
    """Migrations go down to nothing and up again."""
    assert await database.read_revision() == ("0009", "0009")
    await database.migrate("base")
    await database.migrate()
    assert await database.read_revision() == ("0009", "0009")


SERVICE = Path(__file__).parents[3] / "service"


def test_no_statement_is_made_of_values() -> None:
    """No SQL text is an f-string, and none is formatted with what came from outside."""
    for file in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"text", "exec_driver_sql"}
            ):
                assert not any(
                    isinstance(sql, ast.JoinedStr | ast.BinOp) for sql in node.args[:1]
                ), f"{file.name}:{node.lineno}"
