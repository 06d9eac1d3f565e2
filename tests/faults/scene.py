"""Shared parts of the scenarios: recording callers, waits for conditions, failing disks."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.provider import ProviderFake
from tests.process import ServiceProcess
from tests.sse import collect

WAIT_SECONDS = 20


async def wait_until(
    condition: Callable[[], Awaitable[bool]], seconds: float = WAIT_SECONDS
) -> None:
    """Poll a condition without notification, with a timeout."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


class Callers:
    """Callers that send each prompt once and record acknowledgements, refusals and durations."""

    def __init__(self, client: httpx2.AsyncClient, name: str = "question") -> None:
        self._client = client
        self._name = name
        self._number = 0
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.seconds: list[float] = []

    async def ask(self) -> bool:
        """Send one prompt, streamed or not; return whether the answer was acknowledged."""
        self._number += 1
        prompt, stream = f"{self._name} {self._number}", self._number % 2
        body = {"prompt": prompt, "grounded": False}
        began = time.perf_counter()
        if stream:
            async with self._client.stream("POST", "/ai/stream", json=body) as response:
                code = await _ending(response)
        else:
            response = await self._client.post("/ai/test", json=body)
            code = "" if response.status_code == 200 else response.json()["code"]
        if code:
            self.refused.append(code)
            return False
        self.seconds.append(time.perf_counter() - began)
        self.acknowledged.append(prompt)
        return True

    async def ask_many(self, count: int, at_once: int = 8) -> list[float]:
        """Send this number of prompts; return the durations of the acknowledged answers."""
        begun, left = len(self.seconds), count

        async def one_after_another() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.ask()

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return self.seconds[begun:]


async def _ending(response: httpx2.Response) -> str:
    if response.status_code != 200:
        await response.aread()
        return str(response.json()["code"])
    last = (await collect(response))[-1]
    return "" if last.name == "done" else str(last.json["code"])


async def get_readiness(service: ServiceProcess) -> dict[str, Any]:
    """Return the readiness report."""
    body: dict[str, Any] = (await service.client.get("/health/ready")).json()
    return body


async def wait_status(service: ServiceProcess, status: str) -> None:
    """Wait until health reports this status."""

    async def says() -> bool:
        return bool((await get_readiness(service))["status"] == status)

    await wait_until(says)


async def wait_drained(service: ServiceProcess) -> None:
    """Wait until no answer is open or waiting for the database, and recovery is done."""

    async def drained() -> bool:
        body = await get_readiness(service)
        return (body["queue"]["open"], body["queue"]["waiting"], body["recovery"]["state"]) == (
            0,
            0,
            "done",
        )

    await wait_until(drained)


async def stop_service(service: ServiceProcess, fake: ProviderFake) -> None:
    """Send SIGTERM and check a clean exit."""
    service.signal(signal.SIGTERM)
    assert await service.wait() == 0
    await fake.wait_idle()


def settings_for(fake: ProviderFake, **settings: Any) -> dict[str, Any]:
    """Settings of a service that uses the fake as its provider."""
    return {
        "OPENAI_BASE_URL": fake.base_url,
        "KOTAE_MODEL": "gpt-4o-mini",
        "KOTAE_LOG_LEVEL": "error",
    } | settings


@contextmanager
def mount_small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of this size on the folder; skip the test without permission."""
    folder.mkdir(exist_ok=True)
    _run_or_skip("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def make_read_only(file: Path) -> Iterator[None]:
    """Make the file read-only for everyone, root included."""
    _run_or_skip("mount", "--bind", str(file), str(file))
    try:
        _run_or_skip("mount", "-o", "remount,ro,bind", str(file))
        yield
    finally:
        subprocess.run(["umount", "-l", file], check=True)


def fill_disk(folder: Path) -> Path:
    """Fill a small disk with a ballast file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@contextmanager
def mount_ext4(folder: Path, image: Path) -> Iterator[Path]:
    """Mount a small ext4 on the folder; skip the test without permission."""
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    _run_or_skip("mkfs.ext4", "-q", "-F", str(image))
    _run_or_skip("mount", "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@asynccontextmanager
async def freeze_disk(folder: Path, seconds_max: float = 20) -> AsyncIterator[None]:
    """Freeze the filesystem: writes block.

    A second process unfreezes it, even if this one dies or hangs.
    """
    code = subprocess.run(["fsfreeze", "-f", folder], check=False, capture_output=True, text=True)
    if code.returncode:
        pytest.skip(f"not run: fsfreeze: {code.stderr.strip()}")
    guard = subprocess.Popen(
        ["sh", "-c", f"timeout {seconds_max:g} cat; fsfreeze -u '{folder}'"], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        guard.communicate()


def _run_or_skip(*command: str) -> None:
    if os.getuid() != 0:
        pytest.skip(f"not run: {command[0]} needs root")
    if not shutil.which(command[0]):
        pytest.skip(f"not run: {command[0]} is not installed")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not run: {' '.join(command)}: {done.stderr.strip()}")
