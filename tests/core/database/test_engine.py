import ast
import asyncio

import pytest
import sqlalchemy as sa

from service.core.database.engine import READERS, Database
from service.core.errors import DatabaseUnavailable, SettingsInvalid
from service.core.fair_share import current_user
from tests.sources import parse_service


async def test_a_reading_session_cannot_write(database: Database) -> None:
    """SQLite rejects a write in a read session."""
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        async with database.read_session() as session:
            await session.execute(sa.text("DELETE FROM documents"))


async def test_up_and_down(database: Database) -> None:
    """Migrations can be reverted and applied again."""
    assert await database.read_revision() == ("0043", "0043")
    await database.migrate("base")
    await database.migrate()
    assert await database.read_revision() == ("0043", "0043")


async def test_the_url_limits_the_wait_for_a_lock(database: Database) -> None:
    """A statement gives up on a locked database after the `timeout` of the URL."""
    impatient = Database(f"sqlite+aiosqlite:///{database.file}?timeout=0.05")
    try:
        async with asyncio.timeout(3), database.transaction():
            with pytest.raises(DatabaseUnavailable, match="locked"):
                async with impatient.transaction():
                    pass
    finally:
        await impatient.close()


@pytest.mark.parametrize("timeout", ["soon", "1&timeout=2"])
def test_an_invalid_timeout_is_refused(timeout: str) -> None:
    """A `timeout` that is not one number is a mistake in the setting."""
    with pytest.raises(SettingsInvalid, match="KOTAE_DATABASE_URL"):
        Database(f"sqlite+aiosqlite:///kotae.db?timeout={timeout}")


def test_no_statement_contains_values() -> None:
    """No SQL text is an f-string or a concatenation."""
    for module, tree in parse_service().items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"text", "exec_driver_sql"}
            ):
                assert not any(
                    isinstance(sql, ast.JoinedStr | ast.BinOp) for sql in node.args[:1]
                ), f"{module}:{node.lineno}"


async def test_users_take_turns_at_the_database(database: Database) -> None:
    """A read of another user is not behind all the reads of one user, nor is a write."""
    order: list[str] = []

    async def read(user_id: str) -> None:
        current_user.set(user_id)
        async with database.read_session() as session:
            await session.execute(sa.text("SELECT 1"))
            order.append(user_id)

    async def write(user_id: str) -> None:
        current_user.set(user_id)
        async with database.transaction():
            order.append(user_id)

    for access in (read, write):
        order.clear()
        tasks = [asyncio.create_task(access(user_id)) for user_id in ["a"] * 20 + ["b"]]
        await asyncio.gather(*tasks)
        assert order.index("b") <= 2 * READERS + 1, order
