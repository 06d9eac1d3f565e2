"""The files of an SQLite database: where they are, and who may read them."""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
SUFFIXES = ("", "-wal", "-shm")  # of the files that belong together


def is_sqlite(url: str) -> bool:
    """Whether a database URL is one of SQLite."""
    return url.startswith("sqlite")


def find_database_file(url: str) -> Path | None:
    """The file of an SQLite URL, with symbolic links resolved. None for any other database.

    SQLite resolves links in the same way to derive the names of its other files.
    """
    if not is_sqlite(url):
        return None
    parsed = make_url(url)
    name = parsed.database or ":memory:"
    if name.startswith("file:"):
        if parsed.query.get("mode") == "memory":
            return None
        name = unquote(urlsplit(name).path)
    return None if name == ":memory:" else Path(os.path.realpath(name))


def create_private_directory(path: Path) -> None:
    """Create a directory, and missing parents, with mode 0700. An existing one is not changed."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            folder.mkdir(DIRECTORY_MODE)
            folder.chmod(DIRECTORY_MODE)  # the umask may have removed bits of the owner
            match_owner(folder)


def create_private_file(path: Path) -> None:
    """Create an empty file with mode 0600, unless it exists."""
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        os.fchmod(fd, FILE_MODE)
        os.close(fd)
        match_owner(path)


def match_owner(path: Path) -> None:
    """Run as root, give a new file the owner of its directory: the service may be another user."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def restrict_database_files(file: Path) -> None:
    """Set the mode of a database and its other files to 0600, where they belong to this user.

    SQLite creates the other files with the mode of the database.
    """
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError, PermissionError):
            path = Path(f"{file}{suffix}")
            if path.stat().st_mode & 0o077:
                path.chmod(FILE_MODE)
