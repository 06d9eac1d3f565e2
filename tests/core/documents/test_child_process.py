"""Isolated child processes: limits, and their end."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from service.core.documents.child_process import ChildProcess

MEMORY_BYTES_MAX = 2**30


async def test_a_child_that_is_ended_while_it_starts_is_killed() -> None:
    """`end` may be called before the process exists."""
    child = ChildProcess(("sleep", "600"), MEMORY_BYTES_MAX)
    child.end()
    with pytest.raises((EOFError, OSError)):
        await asyncio.to_thread(list, child.exchange([b"x"]))

    assert child._process
    assert child._process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="not run: only Linux has these limits")
def test_a_child_cannot_write_files(tmp_path: Path) -> None:
    """A reader that a file has taken over leaves nothing on the disk."""
    program = (
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(0)\n"
        "connection.recv_bytes(), connection.recv_bytes()\n"
        "try:\n"
        f"    open({str(tmp_path / 'file')!r}, 'w').write('x' * 100_000)\n"
        "    connection.send_bytes(b'written')\n"
        "except OSError as error:\n"
        "    connection.send_bytes(type(error).__name__.encode())\n"
        "connection.send_bytes(b'')\n"
    )
    child = ChildProcess((sys.executable, "-c", program), MEMORY_BYTES_MAX)
    try:
        assert list(child.exchange([b"x"])) == [b"OSError"]
    finally:
        child.end()
    assert (tmp_path / "file").stat().st_size == 0
