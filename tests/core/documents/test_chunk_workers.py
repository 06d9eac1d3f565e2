"""Where documents are split into chunks: a thread, or an isolated child process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.child_process import NICENESS
from service.core.documents.chunk_workers import (
    BATCH_CHARACTERS_MAX,
    ChunkProcess,
    ChunkProcessDied,
    ChunkWorkers,
    _group_batches,
)
from service.core.documents.chunker import chunk_documents
from service.core.fair_share import current_user
from service.core.settings import Settings

SETTINGS = Settings(_env_file=None)
TEXT = "\n\n".join(
    f"第{n}章。灯台の管理人は毎朝レンズを{n}回磨き、鐘を鳴らします。The keeper rings bell {n}."
    for n in range(400)
)
ROW = {
    "document_id": "d0",
    "n": 1,
    "start": 0,
    "end": 0,
    "text": "",
    "words": "",
    "grams": "",
    "content_hash": "",
}


def document(text: str, n: int = 0) -> dict[str, str]:
    """A document as the library passes it."""
    return {"id": f"d{n}", "title": "T", "text": text}


def child_program(expression: str) -> tuple[str, ...]:
    """The command of a child that answers each task with one row: the value of an expression."""
    program = f"""
import os, resource, time
import msgspec
from multiprocessing.connection import Connection
connection, tasks = Connection(0), 0
while True:
    connection.recv_bytes()
    while connection.recv_bytes():
        pass
    tasks += 1
    connection.send_bytes(msgspec.msgpack.encode([{ROW!r} | {{"text": str({expression})}}]))
    connection.send_bytes(b"")
"""
    return sys.executable, "-c", program


async def ask(process: ChunkProcess, text: str = "x") -> str:
    """The text of the row with which a `child_program` answers."""
    (row,) = (await process.chunk_documents([document(text)], SETTINGS))["d0"]
    return row["text"]


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended and was reaped."""
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.001)


@pytest.fixture
async def process() -> AsyncIterator[ChunkProcess]:
    """A process with the default settings; a test that needs it starts it."""
    with closing(ChunkProcess()) as process:
        yield process


async def test_the_child_returns_the_same_rows_as_the_thread(process: ChunkProcess) -> None:
    """For several documents, long, short and empty."""
    documents = [
        document(text, n) for n, text in enumerate((TEXT, "灯台。", "", "Harbour. " * 900))
    ]

    assert await process.chunk_documents(documents, SETTINGS) == chunk_documents(
        documents, SETTINGS
    )


@pytest.mark.parametrize(("characters", "in_child"), [(999, False), (1001, True)])
async def test_much_text_is_split_by_the_child(
    process: ChunkProcess, characters: int, in_child: bool
) -> None:
    """The characters of all documents of a call are counted."""
    workers = ChunkWorkers(process, thread_characters_max=1000)
    documents = [document(TEXT[:500]), document(TEXT[: characters - 500], 1)]

    assert await workers.chunk_documents(documents, SETTINGS) == chunk_documents(
        documents, SETTINGS
    )
    assert (process._idle is not None) is in_child


async def test_nothing_to_split_does_not_wait_for_the_thread() -> None:
    """The library calls it inside of a transaction, usually without documents."""
    workers = ChunkWorkers()
    async with workers._thread_turns.turn(), asyncio.timeout(20):
        assert await workers.chunk_documents([], SETTINGS) == {}


def test_documents_are_sent_to_the_child_in_bounded_batches() -> None:
    """In order, as many per batch as fit; a document longer than a batch is sent separately."""
    lengths = [1, BATCH_CHARACTERS_MAX - 1, 1, BATCH_CHARACTERS_MAX + 1, 2, 3]
    documents = [document("x" * length, n) for n, length in enumerate(lengths)]

    assert [[item["id"] for item in batch] for batch in _group_batches(documents)] == [
        ["d0", "d1"],
        ["d2"],
        ["d3"],
        ["d4", "d5"],
    ]


async def test_the_child_is_kept_for_the_next_task() -> None:
    """The same process answers again."""
    with closing(ChunkProcess(child_program("os.getpid()"))) as process:
        assert await ask(process) == await ask(process)


async def test_an_idle_child_is_ended() -> None:
    """Some time after its last task."""
    process = ChunkProcess(child_program("os.getpid()"), keep_seconds=0)

    await wait_gone(int(await ask(process)))
    assert process._idle is None


async def test_a_child_that_was_killed_while_idle_is_replaced() -> None:
    """For example by the kernel, for its memory."""
    with closing(ChunkProcess(child_program("os.getpid()"))) as process:
        pid = int(await ask(process))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        assert int(await ask(process)) != pid


async def test_the_child_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment contains none of our settings."""
    monkeypatch.setenv("KOTAE_SECRET", "s" * 32)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with closing(ChunkProcess(child_program("' '.join(os.environ)"))) as process:
        names = (await ask(process)).split()

    assert "PATH" in names
    assert not [name for name in names if name.startswith(("KOTAE_", "OPENAI_"))]


async def test_the_child_has_a_lower_priority() -> None:
    """From its start, before it receives a task."""
    with closing(ChunkProcess(child_program("os.getpriority(os.PRIO_PROCESS, 0)"))) as process:
        priority = int(await ask(process))

    assert priority == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


@pytest.mark.skipif(
    sys.platform != "linux", reason="not run: only Linux can limit the memory of another process"
)
async def test_the_memory_of_the_child_is_limited() -> None:
    """A child that needs more fails."""
    program = child_program("len(bytearray(2**29))")
    with (
        closing(ChunkProcess(program, memory_bytes_max=2**29)) as process,
        pytest.raises(ChunkProcessDied),
    ):
        await ask(process)


async def test_a_child_that_takes_too_long_is_killed() -> None:
    """Its limit grows with the text, so the first, long task succeeds."""
    program = child_program("os.getpid() if tasks == 1 else time.sleep(600)")
    with closing(ChunkProcess(program, task_seconds_max=0.01)) as process:
        pid = int(await ask(process, "x" * 200_000))
        with pytest.raises(ChunkProcessDied, match="TimeoutError"):
            await ask(process)

    await wait_gone(pid)


async def test_a_child_whose_caller_is_cancelled_is_killed() -> None:
    """A cancelled upload leaves no process behind."""
    process = ChunkProcess(child_program("os.getpid() if tasks == 1 else time.sleep(600)"))
    pid = int(await ask(process))
    task = asyncio.create_task(ask(process))
    async with asyncio.timeout(20):
        while process._idle:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await wait_gone(pid)


@pytest.mark.parametrize(
    "command",
    [
        ("false",),
        ("/nowhere/at/all",),
        ("sh", "-c", "head -c 1 > /dev/null; printf '\\0\\0\\1\\0half' >&0"),
        ("sh", "-c", "head -c 1 > /dev/null; printf '\\177\\0\\0\\0' >&0; exec sleep 600"),
        tuple(word.replace("str(", "list(") for word in child_program("''")),
        tuple(word.replace("'d0'", "'d1'") for word in child_program("''")),
    ],
    ids=[
        "exits",
        "does not start",
        "breaks off",
        "frame too large",
        "not a row",
        "row of another document",
    ],
)
async def test_a_child_that_fails_loses_no_document(
    database: Database, command: tuple[str, ...]
) -> None:
    """The text is split in the service instead."""
    text = TEXT[:5000]
    with closing(ChunkWorkers(ChunkProcess(command), thread_characters_max=0)) as workers:
        (stored,) = await library.store_documents(
            database, SETTINGS, workers, [library.NewDocument("T", text, "utf-8")], user_id="u"
        )

    assert stored.chunks == len(chunk_documents([document(text)], SETTINGS)["d0"])


@pytest.mark.slow
def test_the_child_ends_with_the_service() -> None:
    """Even if the service is killed: the child waits at a socket, which is closed then."""
    program = (
        "import asyncio, os, signal\n"
        "from service.core.documents.chunk_workers import ChunkProcess\n"
        "from service.core.settings import Settings\n"
        "async def main():\n"
        "    process = ChunkProcess()\n"
        "    await process.chunk_documents([], Settings(_env_file=None))\n"
        "    print(process._idle._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    # The child inherits the pipe of standard error, so `run` returns when both have ended.
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20
    )

    assert (result.returncode, result.stderr) == (-signal.SIGKILL, "")
    assert int(result.stdout) > 0


async def test_users_take_turns_at_chunking() -> None:
    """An upload of another user is chunked before the rest of many uploads of one user."""
    order: list[str] = []
    workers = ChunkWorkers()

    async def upload(user_id: str, n: int) -> None:
        current_user.set(user_id)
        await workers.chunk_documents([document("x", n)], SETTINGS)
        order.append(user_id)

    async with workers._thread_turns.turn("other"):
        tasks = [
            asyncio.create_task(upload(user_id, n)) for n, user_id in enumerate(["a"] * 5 + ["b"])
        ]
        while workers._thread_turns.waiting < len(tasks):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)

    assert order[:2] == ["a", "b"]
