"""The interactive API documentation in a browser."""

import pytest
from playwright.async_api import Browser, expect
from pydantic import SecretStr

from tests.access import SECRET
from tests.conftest import Serve

pytestmark = pytest.mark.slow


async def test_the_authorize_button_sends_the_credential(chromium: Browser, serve: Serve) -> None:
    """A key entered under *Authorize* is sent with the requests of *Try it out*."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    page = await (await chromium.new_context()).new_page()
    page.set_default_timeout(20_000)
    await page.goto(f"{service.url}/docs")
    await page.click(".auth-wrapper .authorize")
    bearer = page.locator(".auth-container", has_text="bearer").first
    await bearer.locator("input").fill(SECRET)
    await bearer.locator("button.authorize").click()
    await page.locator("button.btn-done").first.click()
    operation = page.locator("#operations-session-get_session")
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".try-out__btn").click()
    async with page.expect_response("**/auth/session") as response:
        await operation.locator("button.execute").click()

    assert (await response.value).status == 200
    await expect(operation.locator(".responses-table.live-responses-table")).to_contain_text("200")
