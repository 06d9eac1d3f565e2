"""Browser for the page tests: Debian's Chromium, driven by Playwright."""

import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.conftest import Service

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--remote-debugging-port=0",
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # A name that is neither loopback nor https: browsers send it no Sec-Fetch headers.
    "--host-resolver-rules=MAP kotae.test 127.0.0.1",
]


class Visit:
    """One page in a separate browser profile, with its console messages and requests."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in {"error", "warning"}
                else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def foreign_requests(self) -> list[str]:
        """Requests to other origins than the service."""
        own = urlsplit(self.url)[:2]
        return [url for url in self.requests if urlsplit(url)[:2] != own]

    async def ask(self, question: str) -> None:
        """Type a question, press Enter, and wait until its answer has ended."""
        await self.begin(question)
        await self.wait_ended()

    async def begin(self, question: str) -> None:
        """Type a question and press Enter."""
        await self.page.fill("#question", question)
        await self.page.press("#question", "Enter")

    async def wait_state(self, state: str) -> None:
        """Wait until the current answer is in this state."""
        await self.page.locator(f'#current [data-state="{state}"]').wait_for()

    async def wait_ended(self) -> None:
        """Wait until the current answer has ended."""
        await self.page.locator('#current .text[aria-busy="false"]').wait_for(state="attached")

    async def text(self, selector: str) -> str:
        """Return the text of an element as displayed."""
        return await self.page.locator(selector).inner_text()


Open = Callable[..., Awaitable[Visit]]


@pytest.fixture(scope="session")
def chromium_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a browser for the session and yield its debugging URL; skip tests without Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"not run: {CHROMIUM} is absent (apt-get install chromium)")
    profile = tmp_path_factory.mktemp("chromium")
    log = profile / "stderr.txt"  # a file: a full pipe would block the browser
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [CHROMIUM, *ARGUMENTS, f"--user-data-dir={profile}"], stderr=stderr
        ) as process,
    ):
        try:
            yield _wait_listening(process, log)
        finally:
            process.terminate()


def _wait_listening(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if match := re.search(r"DevTools listening on (\S+)", log.read_text(errors="replace")):
            return match[1]
        time.sleep(0.02)
    pytest.fail(f"the browser did not start: {log.read_text(errors='replace')}")


@pytest.fixture
async def chromium(chromium_url: str) -> AsyncIterator[Browser]:
    """Connect to the browser from a test's event loop."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium_url)
        yield browser
        for context in browser.contexts[1:]:  # the first context is the browser's default
            await context.close()


@pytest.fixture
async def open_page(chromium: Browser) -> Open:
    """Open the page of a service in a new profile and wait for its list of documents."""

    async def open_(
        url: str, *, locale: str = "en-US", width: int = 1100, height: int = 800, **options: Any
    ) -> Visit:
        context = await chromium.new_context(
            locale=locale, viewport={"width": width, "height": height}, **options
        )
        context.set_default_timeout(10_000)
        visit = Visit(await context.new_page(), url)
        await visit.page.goto(f"{url}/")
        await visit.page.locator(
            "#documents-list li, #documents-empty:not([hidden])"
        ).first.wait_for()
        return visit

    return open_


@pytest.fixture
async def visit(open_page: Open, service_url: str) -> Visit:
    """Open the page of a seeded service as an English reader on a desktop."""
    return await open_page(service_url)


@pytest.fixture
async def fake_visit(open_page: Open, service: Service) -> Visit:
    """Open the page of a service without documents that uses the fake; documents are disabled."""
    visit = await open_page(service.url)
    await visit.page.uncheck("#grounded")
    return visit
