"""A connection to PostgreSQL for single statements, outside of the pools of `Database`.

Each statement is a transaction of its own, and waits for no write transaction of the log. The
connection is opened when it is needed, and again after it was lost. With `health`, statements are
refused at once while the database does not respond.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from service.core.database.health import DatabaseHealth
from service.core.database.postgres import connect, explain_error
from service.core.errors import DatabaseUnavailable


class StatementConnection:
    """One statement at a time; others wait. `seconds`: the maximum duration, with connecting."""

    def __init__(
        self,
        url: str,
        settings: Mapping[str, str],
        *,
        seconds: float,
        health: DatabaseHealth | None = None,
    ) -> None:
        self._url, self._settings, self._seconds = url, dict(settings), seconds
        self._health = health
        self._connection: Any = None
        self._turn = asyncio.Lock()

    async def fetch_value(self, statement: str, *values: Any) -> Any:
        """Run a statement and return its first value. Raises `DatabaseUnavailable`."""
        row = await self.fetch_row(statement, *values)
        return None if row is None else row[0]

    async def fetch_row(self, statement: str, *values: Any) -> Any:
        """Run a statement and return its first row, if any. Raises `DatabaseUnavailable`."""
        try:
            async with asyncio.timeout(self._seconds), self._turn:
                return await self._run(statement, values)
        except Exception as error:
            if (detail := explain_error(error)) is None:
                raise
            raise DatabaseUnavailable(f"the database reported: {detail}") from error

    async def _run(self, statement: str, values: Sequence[Any]) -> Any:
        if self._health is not None:
            self._health.require_available()
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._url, self._settings, self._seconds)
                if self._health is not None:
                    self._health.track_connection(self._connection)
            return await self._connection.fetchrow(statement, *values)
        except BaseException:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.terminate()  # its state is unknown
            raise

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken
                await connection.close(timeout=self._seconds)
