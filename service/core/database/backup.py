"""Copies of the database: made while a service runs, checked, and put in its place.

A copy is a single file: it is not in WAL mode, and its pages were checked completely
(`PRAGMA integrity_check`). It is written beside its destination and renamed at the end, so an
interrupted command leaves no incomplete file under the final name.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from service.core.database.failures import find_problem
from service.core.database.files import SUFFIXES, create_private_file
from service.core.errors import KotaeError

BEFORE = ".before"  # suffix of a database that was replaced


@contextmanager
def create_copy(source: Path, copy: Path, *, live: bool) -> Iterator[Path]:
    """Copy a database for the time of the block, which may rename the copy.

    With `live`, other connections may write meanwhile: the copy is one snapshot.
    Raises `KotaeError` if the source cannot be read or is damaged.
    """
    try:
        _remove_database(copy)  # of an interrupted command
        create_private_file(copy)
        with (
            closing(_connect_for_reading(source, live=live)) as origin,
            closing(sqlite3.connect(copy)) as target,
        ):
            origin.backup(target)
            problem = find_problem(target, "integrity_check")
        if problem != "ok":
            raise KotaeError(f"{source} is damaged: {' '.join(problem.split())}")
        yield copy
    except (sqlite3.Error, OSError) as error:
        raise KotaeError(f"{source} cannot be copied to {copy}: {error}") from error
    finally:
        _remove_database(copy)


def install_copy(copy: Path, file: Path) -> None:
    """Give a copy its final name, durably. An existing file is replaced."""
    with closing(sqlite3.connect(copy)) as connection:  # it may have been opened in WAL mode
        connection.execute("PRAGMA journal_mode=DELETE")
    with copy.open("rb") as written:
        os.fsync(written.fileno())
    copy.replace(file)
    _sync_directory(file.parent)


def set_aside(file: Path) -> Path | None:
    """Rename a database that no process uses to its name with `.before`, together with its WAL.

    An earlier `.before` gets a number. Returns the new name, or None if there was no database.
    """
    if not file.exists():
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # fails for a damaged database
    before = Path(f"{file}{BEFORE}")
    if before.exists():
        number = 1
        while Path(f"{before}.{number}").exists():
            number += 1
        _rename_database(before, Path(f"{before}.{number}"))
    _rename_database(file, before)
    return before


def _connect_for_reading(source: Path, *, live: bool) -> sqlite3.Connection:
    """Connect to a database. One that is not live may be on read-only media."""
    if not source.exists():
        raise KotaeError(f"{source} does not exist")
    # A file in WAL mode can only be opened in a directory without write access if it is immutable.
    immutable = not live and not Path(f"{source}-wal").exists()
    options = "immutable=1" if immutable else "mode=rw"
    connection = sqlite3.connect(f"file:{quote(str(source))}?{options}", uri=True)
    connection.execute("PRAGMA query_only=ON")
    return connection


def _rename_database(file: Path, name: Path) -> None:
    """Rename a database and its other files. Its WAL first: it must never meet another database."""
    for suffix in reversed(SUFFIXES):
        with suppress(FileNotFoundError):
            Path(f"{file}{suffix}").rename(f"{name}{suffix}")
    _sync_directory(file.parent)


def _remove_database(file: Path) -> None:
    for suffix in reversed(SUFFIXES):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
