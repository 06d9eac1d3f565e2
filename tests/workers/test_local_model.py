import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI, AuthenticationError

from service.core.errors import SettingsInvalid
from service.workers import local_model
from service.workers.local_model import LocalModel, LocalModelState
from tests.waiting import wait_until

STAND_IN = r"""
# Implements what the supervisor uses. `behaviour` is a JSON file that a test may rewrite.
import argparse, http.server, json, os, pathlib, signal, sys

parser = argparse.ArgumentParser()
parser.add_argument("behaviour", type=pathlib.Path)
parser.add_argument("--port", type=int)
parser.add_argument("--parent", type=int)
arguments = parser.parse_args()
behaviour = json.loads(arguments.behaviour.read_text())
with arguments.behaviour.with_name("starts").open("a") as starts:
    starts.write("|")
if behaviour.get("die_with_parent"):
    from service.workers.local_model import end_with_parent
    end_with_parent(arguments.parent)
if behaviour.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "exit" in behaviour:
    sys.exit(behaviour["exit"])
key = sys.stdin.readline().strip()
requests = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.respond(200, {"requests": requests, "environment": dict(os.environ)})

    def do_POST(self):
        global requests
        requests += 1
        self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != "Bearer " + key:
            self.respond(401, {})
        else:
            self.respond(503 if requests <= behaviour.get("busy", 0) else 200, {"choices": []})

    def respond(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""

PARENT = """
import asyncio, sys
from service.core.telemetry import configure_logging
from service.workers.local_model import LocalModel

async def main():
    configure_logging("error", "json")
    model = LocalModel(command=sys.argv[1:])
    await model.start()
    print(model.statistics().pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class StandIn:
    """The command line of a stand-in child, and its behaviour at the next start."""

    def __init__(self, folder: Path) -> None:
        self._behaviour = folder / "behaviour.json"
        self._starts = folder / "starts"
        self._script = folder / "stand_in.py"
        self._script.write_text(STAND_IN)
        self.command = [sys.executable, str(self._script), str(self._behaviour)]
        self.behave()

    def behave(self, **behaviour: object) -> None:
        self._behaviour.write_text(json.dumps(behaviour))

    @property
    def starts(self) -> int:
        """Count the starts of a child."""
        return len(self._starts.read_text())


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """A child that answers immediately by default."""
    return StandIn(tmp_path)


@pytest.fixture
async def model(stand_in: StandIn) -> AsyncIterator[LocalModel]:
    """A local model whose child is the stand-in."""
    model = LocalModel(
        command=stand_in.command, start_seconds_max=20, stop_seconds_max=10, backoff_seconds=0.01
    )
    yield model
    await model.stop()


async def ask(url: str) -> dict[str, object]:
    """Read the state of the stand-in."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    state: dict[str, object] = json.loads(body)
    return state


def has_ended(pid: int) -> bool:
    """True if a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except FileNotFoundError:
        return True


async def test_start_waits_for_an_answer(stand_in: StandIn, model: LocalModel) -> None:
    """`start` returns after the child has answered a request with the key."""
    stand_in.behave(busy=2)
    url = await model.start()
    assert url.endswith("/v1")
    assert (await ask(url))["requests"] == 3
    assert model.statistics().state is LocalModelState.SERVING


async def test_start_twice_is_once(model: LocalModel) -> None:
    """A second `start` returns the same URL and starts nothing."""
    url, pid = await model.start(), model.statistics().pid
    assert (await model.start(), model.statistics().pid) == (url, pid)


async def test_environment(monkeypatch: pytest.MonkeyPatch, model: LocalModel) -> None:
    """The environment makes idle threads sleep and contains no settings."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("KOTAE_SECRET", "secret")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    environment = (await ask(await model.start()))["environment"]
    assert isinstance(environment, dict)
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert not [name for name in environment if name.startswith(("KOTAE_", "OPENAI_"))]


async def test_a_separate_session(model: LocalModel) -> None:
    """Ctrl-C in the terminal does not reach the child."""
    await model.start()
    pid = model.statistics().pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)


async def test_packages_missing() -> None:
    """If packages are missing, the error names them and the command that installs them."""
    with pytest.raises(
        SettingsInvalid,
        match="needs llm-absent and absent-runtime, not installed: make setup MODEL=smollm2",
    ):
        await LocalModel(packages=("llm_absent", "absent_runtime")).start()


async def test_a_child_that_ends(stand_in: StandIn, model: LocalModel) -> None:
    """A child that ends before it answers fails the start, with its exit code."""
    stand_in.behave(exit=3)
    with pytest.raises(SettingsInvalid, match="exited with code 3"):
        await model.start()
    assert model.statistics().state is LocalModelState.STOPPED


async def test_a_child_that_never_answers(stand_in: StandIn) -> None:
    """A child that is never ready fails the start after the timeout."""
    stand_in.behave(busy=1_000_000)
    model = LocalModel(command=stand_in.command, start_seconds_max=0.5)
    with pytest.raises(SettingsInvalid, match=r"no answer within 0\.5 seconds"):
        await model.start()


async def test_a_start_that_is_cancelled(model: LocalModel) -> None:
    """A cancelled start leaves no child behind, and the model can be started later."""
    start = asyncio.create_task(model.start())
    await wait_until(lambda: model.statistics().state is LocalModelState.STARTING)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert model.statistics().state is LocalModelState.STOPPED
    await model.start()


async def test_stop(model: LocalModel) -> None:
    """`stop` ends the child, and may be called again."""
    await model.start()
    pid = model.statistics().pid
    assert pid is not None
    await model.stop()
    assert has_ended(pid)
    await model.stop()
    assert model.statistics() == local_model.LocalModelStatistics(
        LocalModelState.STOPPED, None, 0, None
    )


async def test_stop_kills_after_a_timeout(stand_in: StandIn) -> None:
    """A child that ignores SIGTERM is killed."""
    stand_in.behave(deaf=True)
    model = LocalModel(command=stand_in.command, stop_seconds_max=0.05)
    await model.start()
    pid = model.statistics().pid
    assert pid is not None
    await model.stop()
    assert has_ended(pid)


async def test_a_dead_child_is_replaced(model: LocalModel) -> None:
    """A child that exits is restarted at the same URL, which the statistics report."""
    url, pid = await model.start(), model.statistics().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await wait_until(
        lambda: (
            model.statistics().deaths == 1 and model.statistics().state is LocalModelState.SERVING
        )
    )
    assert model.statistics().exit_code == -signal.SIGKILL
    assert model.statistics().pid != pid
    assert await model.start() == url
    assert (await ask(url))["requests"] == 1


async def test_a_child_that_cannot_start_again(stand_in: StandIn, model: LocalModel) -> None:
    """A failed restart is repeated, and the statistics report it."""
    await model.start()
    pid = model.statistics().pid
    assert pid is not None
    stand_in.behave(exit=1)
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: stand_in.starts >= 3)
    assert model.statistics().state is LocalModelState.RESTARTING
    assert model.statistics().pid is None
    stand_in.behave()
    await wait_until(lambda: model.statistics().state is LocalModelState.SERVING)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="not run: only Linux kills a child with its parent"
)
async def test_the_child_dies_with_its_parent(tmp_path: Path, stand_in: StandIn) -> None:
    """The child is killed with its parent, even if it does not read standard input."""
    stand_in.behave(die_with_parent=True, deaf=True)
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *stand_in.command, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert not has_ended(pid)
    parent.kill()
    await parent.wait()
    await wait_until(lambda: has_ended(pid))


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec(local_model.WEIGHTS) is None or find_spec(local_model.RUNTIME) is None,
    reason="not run: the packages of the extra smollm2 are not installed",
)
async def test_the_real_model() -> None:
    """SmolLM2 streams an answer with usage to the real client, and rejects an invalid key."""
    model = LocalModel()
    try:
        url = await model.start()
        async with AsyncOpenAI(base_url=url, api_key=model.api_key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=local_model.ALIAS,
                messages=[
                    {
                        "role": "user",
                        "content": "Refunds take 5 days. How many days do refunds take?",
                    }
                ],
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
        usage = chunks[-1].usage
        assert usage is not None
        assert 1 <= usage.completion_tokens <= 16
        assert (
            usage.total_tokens
            == usage.prompt_tokens + usage.completion_tokens
            > usage.completion_tokens
        )
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert {chunk.model for chunk in chunks} == {local_model.ALIAS}
        async with AsyncOpenAI(base_url=url, api_key="another", max_retries=0) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.chat.completions.create(
                    model=local_model.ALIAS, messages=[{"role": "user", "content": "Hello"}]
                )
    finally:
        await model.stop()
