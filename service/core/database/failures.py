"""Translates errors of the database drivers, and recognizes signs of a damaged database."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.core.errors import DatabaseUnavailable
from service.core.fair_share import TurnTimeout
from service.core.telemetry import log

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # primary result codes
_READ_ERRORS = {  # extended result codes of input/output errors
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}
_UNDECODABLE = "Could not decode to UTF-8"  # the driver's message continues with the value
_PROBLEMS_MAX = 1  # of quick_check; one is enough to know
DAMAGED_ROWS_MAX = 1_000  # counted and logged


class DamagedValue(ValueError):
    """A stored value does not have the format in which it was written."""


class DamageLog:
    """Signs of damage in the current database. `identify`: changes when it is replaced."""

    def __init__(self, identify: Callable[[], object]) -> None:
        self._identify = identify
        self._first: tuple[object, str] | None = None  # the database and the error
        self._rows: set[tuple[str, str]] = set()  # of that database: table and key

    @property
    def first(self) -> str | None:
        """The first error that was a sign of damage, if any."""
        if self._first is None or self._first[0] != self._identify():
            return None
        return self._first[1]

    @property
    def rows(self) -> int:
        """The number of rows that could not be read, up to the limit."""
        return len(self._rows) if self.first else 0

    def report(self, detail: str) -> None:
        """Remember a sign of damage, such as a value that cannot be decoded."""
        if self.first is None:
            self._first = (self._identify(), detail)
            self._rows.clear()
            remedy = "run `kotae doctor`; if the damage is confirmed, restore a backup"
            log.error("database.damaged", error=detail, remedy=remedy)

    def report_row(self, table: str, key: str, detail: str) -> None:
        """Remember a row that could not be read; its key is logged once."""
        self.report(detail)
        if (table, key) not in self._rows and len(self._rows) < DAMAGED_ROWS_MAX:
            self._rows.add((table, key))
            log.error("row.damaged", table=table, key=key, error=detail)


UNDECODABLE_MESSAGE = "its message cannot be decoded"


class ErrorTranslation:
    """Raises `DatabaseUnavailable` for operational errors; other errors propagate.

    `explain` returns the message of an error that does not depend on the statement, so that the
    statement may succeed later; None for other errors. `report_damage` is called with a description
    for errors that are signs of a damaged database.
    """

    def __init__(
        self, report_damage: Callable[[str], None], explain: Callable[[BaseException], str | None]
    ) -> None:
        self._report_damage, self._explain = report_damage, explain

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, PoolTimeout | TurnTimeout):
            raise DatabaseUnavailable("every connection to the database is in use") from error
        if isinstance(error, DamagedValue):
            self._report_damage(str(error))
            raise DatabaseUnavailable(
                f"the database is damaged, a value cannot be read: {error}"
            ) from error
        if error is None or (detail := self._explain(error)) is None:
            return
        if is_damage(error):
            self._report_damage(detail)
        raise DatabaseUnavailable(f"the database reported: {detail}") from error


def describe_error(error: BaseException) -> str:
    """The message of an error of a read, without the value that it may contain."""
    message = str(error.orig if isinstance(error, DBAPIError) else error)
    return "a text cannot be decoded" if message.startswith(_UNDECODABLE) else message


def is_damage(error: BaseException) -> bool:
    """Whether an error of a read is a sign of a damaged file."""
    if isinstance(error, DamagedValue):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, UnicodeDecodeError):  # in the message of SQLite about a damaged schema
        return True
    code = getattr(cause, "sqlite_errorcode", 0)  # not set by the driver's own errors
    return isinstance(cause, sqlite3.Error) and (
        code & 0xFF in _DAMAGE or code in _READ_ERRORS or str(cause).startswith(_UNDECODABLE)
    )


def load_json(text: str) -> Any:
    """Parse a stored JSON value. Raises `DamagedValue`."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedValue("a JSON value cannot be parsed") from error


def run_quick_check(connection: sqlite3.Connection) -> str:
    """Run `PRAGMA quick_check` and close the connection. Returns `ok` or the first problem."""
    with closing(connection):
        connection.execute("PRAGMA query_only=ON")
        return find_problem(connection, "quick_check")


def find_problem(connection: sqlite3.Connection, check: str) -> str:
    """Run `quick_check` or `integrity_check`. Returns `ok` or the first problem.

    The second call checks the list of free pages. SQLite leaves it out of the first one in
    databases with virtual tables, depending on their names (3.40).
    """
    for argument in (_PROBLEMS_MAX, "sqlite_schema"):
        problem: str = connection.execute(f"PRAGMA {check}({argument})").fetchone()[0]
        if problem != "ok":
            break
    return problem
