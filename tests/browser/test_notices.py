"""What the page says when the service cannot be reached, or the session has ended."""

import pytest
from playwright.async_api import Browser, expect
from pydantic import SecretStr

from tests.access import SECRET
from tests.browser.conftest import Open
from tests.browser.test_page import ENGLISH
from tests.conftest import Serve

pytestmark = pytest.mark.slow


async def test_page_says_that_the_service_is_unreachable_until_it_is_back(
    open_page: Open, service_url: str
) -> None:
    """Without a connection a notice appears; it disappears when the service answers again."""
    visit = await open_page(service_url)
    notice = visit.page.locator("#connection")
    await visit.page.context.set_offline(True)
    await expect(notice).to_contain_text("cannot be reached")
    await expect(visit.page.locator("#connection a")).to_be_hidden()

    await visit.page.context.set_offline(False)
    await expect(notice).to_be_hidden()
    await visit.ask(ENGLISH)
    assert "30" in await visit.text("#current .text")


async def test_ended_session_leads_to_the_sign_in(chromium: Browser, serve: Serve) -> None:
    """When the session ends while the page is open, the page says so and links to the sign-in."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    page = await (await chromium.new_context(locale="en-US")).new_page()
    page.set_default_timeout(10_000)
    await page.goto(f"{service.url}/signin")
    await page.fill("#key", SECRET)
    await page.press("#key", "Enter")
    await page.wait_for_url(f"{service.url}/")
    await page.context.clear_cookies()
    await page.fill("#question", ENGLISH)
    await page.press("#question", "Enter")
    await expect(page.locator("#connection")).to_contain_text("session has ended")
    await page.click("#connection a")
    await expect(page).to_have_url(f"{service.url}/signin")
