"""Damaging database files: values in rows, and bytes of pages."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

PAGE = 4096  # bytes


def set_value(file: Path, answer_id: str, assignment: str, *values: object) -> None:
    """Change a row of the log to a value that the service would never write."""
    drop_not_null(file, "request_logs")
    with closing(sqlite3.connect(file)) as connection:
        changed = connection.execute(
            f"UPDATE request_logs SET {assignment} WHERE id = ?", [*values, answer_id]
        )
        assert changed.rowcount == 1
        connection.commit()


def drop_not_null(file: Path, *tables: str) -> None:
    """Allow NULL in all columns of these tables."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.executemany(
            "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = ?",
            [(table,) for table in tables],
        )
        connection.commit()


def find_pages(file: Path, marker: bytes) -> Sequence[int]:
    """Move the WAL into the file and return the numbers of the pages that contain these bytes."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = file.read_bytes()
    return [n for n in range(len(data) // PAGE) if marker in data[n * PAGE : (n + 1) * PAGE]]


def change_page(file: Path, page: int, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a page."""
    with file.open("r+b") as stream:
        stream.seek(page * PAGE)
        data = bytearray(stream.read(PAGE))
        change(data)
        assert len(data) == PAGE
        stream.seek(page * PAGE)
        stream.write(data)
