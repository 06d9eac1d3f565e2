"""Retrieval computes beside the event loop, not on it, and not so much at once that the loop would wait for it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from service import run
from service.api import context
from service.core import cutting, documents
from service.core.db import Database
from service.core.retrieval import SEARCHES_AT_ONCE, Retrieval
from service.core.settings import Settings
from tests.conftest import Serve
from tests.test_api import is_problem

SETTINGS = Settings(_env_file=None)
TICK = 0.002
SEARCHES = 50
LONG = "\n\n".join(
    f"第{n}章。灯台の管理人は毎朝レンズを{n}回磨き、嵐の夜には鐘を鳴らします。The keeper rings bell {n}." for n in range(4000)
)

T = TypeVar("T")


@asynccontextmanager
async def gaps() -> AsyncIterator[list[float]]:
    """How much later than asked a timer fires, as every stream on the loop would feel it."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - began - TICK)

    task = asyncio.create_task(tick())
    yield late
    task.cancel()
    await asyncio.wait([task])


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[int(len(values) * share)]


def spin(until: list[bool]) -> None:
    """What an ordinary computing thread does to the loop: the measure of what this machine makes of one."""
    while not until:
        sum(range(500))


@pytest.fixture
def as_served() -> Iterator[None]:
    """The switch interval of the service."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(run.SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("as_served")
async def test_searches_and_an_upload_leave_the_loop_to_the_streams(database: Database) -> None:
    """While a large text is stored and many search, the loop is late no more than beside one thread that merely computes."""
    await documents.store(database, SETTINGS, [documents.Given("", LONG[:50_000], "utf-8")], user_id="u")
    retrieval = Retrieval(database, SETTINGS)
    done: list[bool] = []
    thread = asyncio.create_task(asyncio.to_thread(spin, done))
    async with gaps() as beside_a_thread:
        await asyncio.sleep(1)
    done.append(True)
    await thread

    async with gaps() as beside_retrieval:
        storing = asyncio.create_task(documents.store(database, SETTINGS, [documents.Given("", LONG, "utf-8")], user_id="u"))
        await asyncio.gather(*(retrieval.search(f"灯台の管理人は{n}回磨きますか", user_id="u", limit=5) for n in range(SEARCHES)))
        (document,) = await storing
    assert document.created
    assert quantile(beside_retrieval, 0.95) <= quantile(beside_a_thread, 0.95) * 3 + 0.01


class Counted(Database):
    """Counts how many of its looks compute at once."""

    most = now = 0

    async def look(self, work: Callable[[sa.Connection], T]) -> T:
        """The same, counted."""
        lock = threading.Lock()

        def counted(connection: sa.Connection) -> T:
            with lock:
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                return work(connection)
            finally:
                with lock:
                    self.now -= 1

        return await super().look(counted)


async def test_one_search_computes_at_a_time(database: Database) -> None:
    """Of many that search at once, each gets its answer, and no two ever computed side by side."""
    await documents.store(database, SETTINGS, [documents.Given("", LONG[:20_000], "utf-8")], user_id="u")
    counted = Counted(database._url)
    retrieval = Retrieval(counted, SETTINGS)
    found = await asyncio.gather(*(retrieval.search(f"灯台の管理人は{n}回", user_id="u", limit=5) for n in range(SEARCHES)))
    await counted.close()
    assert all(each.items for each in found)
    assert counted.most == SEARCHES_AT_ONCE == 1


async def test_too_many_waiting_searches_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait get their turn; one more is told to come back, before anything was done for it."""
    monkeypatch.setattr(context, "SEARCHES_WAITING_MAX", 3)
    service = await serve(seeded=True)
    held = service.rooms.retrieval._turn
    await held.acquire_on_behalf_of("the test")
    waiting = [asyncio.create_task(service.client.get("/ai/search", params={"q": "返品"})) for _ in range(3)]
    async with asyncio.timeout(20):
        while service.rooms.retrieval.waiting < 3:
            await asyncio.sleep(0.001)
    refused = await service.client.get("/ai/search", params={"q": "返品"})
    held.release_on_behalf_of("the test")

    assert (refused.headers["retry-after"], is_problem(refused, 503, "overloaded")["code"]) == ("1", "overloaded")
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200, 200]


async def test_a_large_text_is_cut_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are those that would have been made here, and none of them was."""
    document = {"id": "d", "title": "T", "text": LONG}
    (expected,) = cutting.cut_here([document], SETTINGS)

    def here(*_: object) -> None:
        pytest.fail("it was cut in this process")

    monkeypatch.setattr(cutting, "cut", here)
    assert await cutting.cut_apart(document, SETTINGS) == expected


def telling(rows: str) -> tuple[str, ...]:
    """The command of a child that takes what it is given, and tells these rows: an expression that may name `os`."""
    program = (
        "import msgspec, os, sys\n"
        "sys.stdin.buffer.read()\n"
        f"frame = msgspec.msgpack.encode({rows})\n"
        "sys.stdout.buffer.write(len(frame).to_bytes(4, 'big') + frame + bytes(4))"
    )
    return sys.executable, "-c", program


async def test_the_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of others are cut by a process that has none of our settings."""
    monkeypatch.setattr(cutting, "CHILD", telling("[{'name': name} for name in os.environ]"))
    monkeypatch.setenv("KOTAE_SECRET", "s" * 32)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    names = {row["name"] for row in await cutting.cut_apart({"id": "d", "title": "T", "text": "x"}, SETTINGS)}
    assert "PATH" in names
    assert not [name for name in names if name.startswith(("KOTAE_", "OPENAI_"))]


async def test_the_child_is_nicer_than_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its beginning: it waits for what it is given, and has stepped back by then."""
    monkeypatch.setattr(cutting, "CHILD", telling("[{'priority': os.getpriority(os.PRIO_PROCESS, 0)}]"))
    (row,) = await cutting.cut_apart({"id": "d", "title": "T", "text": "x"}, SETTINGS)
    assert row["priority"] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + cutting.NICENESS)


async def test_storing_a_large_text_uses_the_child(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than the bound is cut apart, the rest here."""
    apart: list[int] = []

    async def noted(document: dict[str, str], rules: cutting.Rules) -> list[dict[str, object]]:
        apart.append(len(document["text"]))
        return list(cutting.cut(document, rules))

    monkeypatch.setattr(documents, "cut_apart", noted)
    monkeypatch.setattr(documents, "CUT_HERE_CHARACTERS_MAX", 1000)
    for text in (LONG[:1000], LONG[:1001]):
        await documents.store(database, SETTINGS, [documents.Given("", text, "utf-8")], user_id="u")
    assert apart == [1001]


@pytest.mark.parametrize("child", [("false",), ("/nowhere/at/all",), ("sh", "-c", "cat > /dev/null; printf '\\0\\0\\1\\0half'")])
async def test_a_child_that_dies_costs_no_document(database: Database, monkeypatch: pytest.MonkeyPatch, child: tuple[str, ...]) -> None:
    """Whether it ends at once, cannot be started or breaks off in the middle: the text is cut here, whole."""
    text = LONG[:20_000]
    monkeypatch.setattr(cutting, "CHILD", child)
    monkeypatch.setattr(documents, "CUT_HERE_CHARACTERS_MAX", len(text) - 1)
    (document,) = await documents.store(database, SETTINGS, [documents.Given("", text, "utf-8")], user_id="u")
    assert document.chunks == len(list(cutting.cut({"id": "d", "title": document.title, "text": text}, SETTINGS)))


async def test_a_child_that_nobody_waits_for_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that is given up leaves no process behind."""
    started: asyncio.Future[subprocess.Popen[bytes]] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            loop.call_soon_threadsafe(started.set_result, self)

    monkeypatch.setattr(cutting, "CHILD", ("sleep", "600"))
    monkeypatch.setattr(subprocess, "Popen", Noted)
    task = asyncio.create_task(cutting.cut_apart({"id": "d", "title": "T", "text": LONG}, SETTINGS))
    child = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(child.wait, 20) == -signal.SIGKILL


def test_the_service_switches_threads_ten_times_as_often() -> None:
    """`kotae` runs with the interval that the event loop needs."""
    program = (
        "import sys, types, service.run\n"
        "sys.modules['service.__main__'] = types.SimpleNamespace(main=lambda: print(sys.getswitchinterval()))\n"
        "service.run.main()"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(shown.stdout) == pytest.approx(run.SWITCH_SECONDS)
