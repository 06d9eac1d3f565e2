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
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from service import __main__ as entry
from service.api import documents
from service.core.database.engine import Database
from service.core.documents import chunk_workers, chunker, library
from service.core.documents.chunk_workers import Cutter
from service.core.search.service import SEARCHES_AT_ONCE, Retrieval
from service.core.settings import Settings
from tests.conftest import Serve
from tests.problems import is_problem

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
    sys.setswitchinterval(entry.SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("as_served")
async def test_searches_and_an_upload_leave_the_loop_to_the_streams(database: Database) -> None:
    """While a large text is stored and many search, the loop is late no more than beside one thread that merely computes."""
    await library.store(database, SETTINGS, [library.Given("", LONG[:50_000], "utf-8")], user_id="u")
    retrieval = Retrieval(database, SETTINGS)
    done: list[bool] = []
    thread = asyncio.create_task(asyncio.to_thread(spin, done))
    async with gaps() as beside_a_thread:
        await asyncio.sleep(1)
    done.append(True)
    await thread

    async with gaps() as beside_retrieval:
        storing = asyncio.create_task(library.store(database, SETTINGS, [library.Given("", LONG, "utf-8")], user_id="u"))
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
    await library.store(database, SETTINGS, [library.Given("", LONG[:20_000], "utf-8")], user_id="u")
    counted = Counted(database._url)
    retrieval = Retrieval(counted, SETTINGS)
    found = await asyncio.gather(*(retrieval.search(f"灯台の管理人は{n}回", user_id="u", limit=5) for n in range(SEARCHES)))
    await counted.close()
    assert all(each.items for each in found)
    assert counted.most == SEARCHES_AT_ONCE == 1


async def test_too_many_waiting_searches_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait get their turn; one more is told to come back, before anything was done for it."""
    monkeypatch.setattr(documents, "SEARCHES_WAITING_MAX", 3)
    service = await serve(seeded=True)
    held = service.rooms.retrieval._turn
    await held.acquire()
    waiting = [asyncio.create_task(service.client.get("/ai/search", params={"q": "返品"})) for _ in range(3)]
    async with asyncio.timeout(20):
        while service.rooms.retrieval.waiting < 3:
            await asyncio.sleep(0.001)
    refused = await service.client.get("/ai/search", params={"q": "返品"})
    held.release()

    assert (refused.headers["retry-after"], is_problem(refused, 503, "overloaded")["code"]) == ("1", "overloaded")
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200, 200]


@pytest.fixture
async def cutter(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cutter]:
    """The one that the service uses, with no child yet, and with a core for it."""
    made = Cutter()
    monkeypatch.setattr(chunk_workers, "cutter", made)
    monkeypatch.setattr(chunk_workers, "_cores", lambda: 2)
    yield made
    if made._warming:
        await made._warming
    made.let_go()


def document(text: str, n: int = 0) -> dict[str, str]:
    """As it is cut."""
    return {"id": f"d{n}", "title": "T", "text": text}


def telling(rows: str) -> tuple[str, ...]:
    """The command of a child that takes a task of one document, and tells these rows: an expression that may name `os`."""
    program = (
        "import msgspec, os, sys\n"
        "from service.core.documents.chunker import frame_of, tell\n"
        "frame_of(sys.stdin.buffer)\n"
        "while frame_of(sys.stdin.buffer): pass\n"
        f"tell(sys.stdout.buffer, msgspec.msgpack.encode([row | {{'document_id': 'd0'}} for row in {rows}]))\n"
        "tell(sys.stdout.buffer, b'')"
    )
    return sys.executable, "-c", program


@pytest.mark.slow
async def test_a_large_text_is_cut_by_another_process(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are those that would have been made here, and none of them was."""
    expected = chunker.cut_here([document(LONG)], SETTINGS)

    def here(*_: object) -> None:
        pytest.fail("it was cut in this process")

    monkeypatch.setattr(chunker, "cut", here)
    assert await cutter.cut([document(LONG)], SETTINGS) == expected


@pytest.mark.slow
async def test_the_child_is_kept_for_the_next_texts_and_then_let_go(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process cuts several, in the order in which they are given; when nothing came for a while, it has ended."""
    for texts in (["灯台。", "", "Harbour. " * 900], ["港。"]):
        given = [document(text, n) for n, text in enumerate(texts)]
        assert await cutter.cut(given, SETTINGS) == chunker.cut_here(given, SETTINGS)
        child = cutter._idle
        assert child
        assert child.poll() is None
    monkeypatch.setattr(chunk_workers, "KEPT_SECONDS", 0.01)
    await cutter.cut([], SETTINGS)
    assert cutter._idle is child
    assert child
    assert await asyncio.to_thread(child.wait, 20) == -signal.SIGKILL
    assert not cutter.ready


@pytest.mark.slow
async def test_a_child_that_died_meanwhile_is_replaced(cutter: Cutter) -> None:
    """As one that the system has killed for its memory."""
    await cutter.cut([], SETTINGS)
    child = cutter._idle
    assert child
    child.kill()
    child.wait()
    assert len((await cutter.cut([document("灯台。")], SETTINGS))[0]) == 1
    assert cutter._idle is not child


async def test_the_child_knows_no_secret(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of others are cut by a process that has none of our settings."""
    monkeypatch.setattr(chunk_workers, "CHILD", telling("[{'name': name} for name in os.environ]"))
    monkeypatch.setenv("KOTAE_SECRET", "s" * 32)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    names = {row["name"] for row in (await cutter.cut([document("x")], SETTINGS))[0]}
    assert "PATH" in names
    assert not [name for name in names if name.startswith(("KOTAE_", "OPENAI_"))]


async def test_the_child_is_nicer_than_the_service(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its beginning: it waits for what it is given, and has stepped back by then."""
    monkeypatch.setattr(chunk_workers, "CHILD", telling("[{'priority': os.getpriority(os.PRIO_PROCESS, 0)}]"))
    ((row,),) = await cutter.cut([document("x")], SETTINGS)
    assert row["priority"] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + chunk_workers.NICENESS)


async def test_who_cuts_depends_on_how_much_there_is(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large text the child, small ones the thread; of many small ones both their part, once the child is there."""
    by: list[tuple[str, int]] = []
    here, apart = chunker.cut_here, cutter.cut

    def noted_here(documents: Any, rules: chunker.Rules) -> Any:
        by.append(("here", len(documents)))
        return here(documents, rules)

    async def noted_apart(documents: Any, rules: chunker.Rules) -> Any:
        by.append(("apart", len(documents)))
        return await apart(documents, rules)

    monkeypatch.setattr("service.core.documents.chunk_workers.cut_here", noted_here)
    monkeypatch.setattr(cutter, "cut", noted_apart)
    monkeypatch.setattr(chunk_workers, "HERE_CHARACTERS_MAX", 1000)
    monkeypatch.setattr(chunk_workers, "TOGETHER_CHARACTERS_MAX", 100)
    monkeypatch.setattr(chunk_workers, "APART_CHARACTERS_MIN", 2000)
    large, small = document(LONG[:1001]), [document(LONG[n : n + 60], n) for n in range(100)]

    assert len(await chunk_workers.cut_all([document(LONG[:1000])], SETTINGS)) == 1
    assert by == [("here", 1)]
    by.clear()
    assert len(await chunk_workers.cut_all(small, SETTINGS)) == 100  # which begins to make the child ready
    assert ("apart", 0) in by
    assert cutter._warming
    await cutter._warming
    by.clear()
    made = await chunk_workers.cut_all(small, SETTINGS)
    assert [made[each["id"]] for each in small] == chunker.cut_here(small, SETTINGS)
    assert {who for who, _ in by} == {"here", "apart"}
    by.clear()
    assert len(await chunk_workers.cut_all([large], SETTINGS)) == 1
    assert by == [("apart", 1)]


async def test_small_uploads_that_follow_each_other_are_worth_a_child(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they are a lot; with time between them they are not."""
    now = [100.0]
    monkeypatch.setattr("service.core.documents.chunk_workers.time", SimpleNamespace(monotonic=lambda: now[0]))
    upload: list[chunk_workers.Batch] = [[document(LONG[:9_000])]]
    worth = []
    for seconds in (0, 1.9, 1.9, 1.9, 2.1, 0):
        now[0] += seconds
        worth.append(cutter.is_worth_it(upload))
    assert worth == [False, False, True, True, False, False]


async def test_a_few_texts_go_to_the_child_where_others_are_being_cut(cutter: Cutter) -> None:
    """The first that has to wait begins to make the child ready, the next ones use it, and none waits for it in vain."""
    async with chunk_workers._thread:
        waiting = asyncio.create_task(chunk_workers.cut_all([document("灯台。")], SETTINGS))
        async with asyncio.timeout(20):
            while not cutter.ready:
                await asyncio.sleep(0.001)
            assert len(await chunk_workers.cut_all([document("港。")], SETTINGS)) == 1
        assert not waiting.done()
    assert len(await waiting) == 1


async def test_a_text_that_is_cut_waits_for_nobody(cutter: Cutter) -> None:
    """Where the child is busy with another text for long, the thread is enough."""
    await cutter.cut([], SETTINGS)
    async with cutter.turn, asyncio.timeout(20):
        async with chunk_workers._thread:
            waiting = asyncio.create_task(chunk_workers.cut_all([document("灯台。")], SETTINGS))
            await asyncio.sleep(0)
        assert len(await waiting) == 1


@pytest.mark.slow
async def test_without_a_core_for_it_the_child_cuts_large_texts_only(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the thread it would only take its time."""
    monkeypatch.setattr(chunk_workers, "_cores", lambda: 1)
    monkeypatch.setattr(chunk_workers, "APART_CHARACTERS_MIN", 10)
    small = [document(LONG[:600], n) for n in range(30)]
    await chunk_workers.cut_all(small, SETTINGS)
    assert cutter._warming is None
    await cutter.cut([], SETTINGS)
    assert cutter._idle
    assert not cutter.ready


@pytest.mark.parametrize("child", [("false",), ("/nowhere/at/all",), ("sh", "-c", "head -c 1 > /dev/null; printf '\\0\\0\\1\\0half'")])
async def test_a_child_that_dies_costs_no_document(
    cutter: Cutter, database: Database, monkeypatch: pytest.MonkeyPatch, child: tuple[str, ...]
) -> None:
    """Whether it ends at once, cannot be started or breaks off in the middle: the text is cut here, whole."""
    text = LONG[:20_000]
    monkeypatch.setattr(chunk_workers, "CHILD", child)
    monkeypatch.setattr(chunk_workers, "HERE_CHARACTERS_MAX", len(text) - 1)
    (stored,) = await library.store(database, SETTINGS, [library.Given("", text, "utf-8")], user_id="u")
    assert stored.chunks == len(list(chunker.cut(document(text) | {"title": stored.title}, SETTINGS)))
    assert not cutter.ready


async def test_a_child_that_nobody_waits_for_is_killed(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that is given up leaves no process behind."""
    started: asyncio.Future[subprocess.Popen[bytes]] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            loop.call_soon_threadsafe(started.set_result, self)

    monkeypatch.setattr(chunk_workers, "CHILD", ("sleep", "600"))
    monkeypatch.setattr(subprocess, "Popen", Noted)
    task = asyncio.create_task(cutter.cut([document(LONG)], SETTINGS))
    child = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(child.wait, 20) == -signal.SIGKILL


@pytest.mark.slow
def test_the_child_ends_with_the_service() -> None:
    """Whose pipe it waits at, also when it was killed."""
    program = (
        "import asyncio, os, signal\n"
        "from service.core.documents.chunk_workers import cutter\n"
        "from service.core.settings import Settings\n"
        "asyncio.run(cutter.cut([], Settings(_env_file=None)))\n"
        "print(cutter._idle.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # The child has the same pipe for its errors: it is closed when both have ended.
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20)
    assert (shown.returncode, shown.stderr) == (-signal.SIGKILL, "")
    assert int(shown.stdout) > 0


def test_the_service_switches_threads_ten_times_as_often() -> None:
    """`kotae` runs with the interval that the event loop needs."""
    program = (
        "import sys, types, service.__main__\n"
        "sys.modules['service.cli.app'] = types.SimpleNamespace(main=lambda: print(sys.getswitchinterval()))\n"
        "service.__main__.main()"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(shown.stdout) == pytest.approx(entry.SWITCH_SECONDS)
