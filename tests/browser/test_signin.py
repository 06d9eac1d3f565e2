"""Sign-in with a browser: the key is typed once, and scripts cannot read the session cookie."""

import pytest
from playwright.async_api import Browser, expect

from tests.access import make_key
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake

pytestmark = pytest.mark.slow


async def test_sign_in_and_sign_out(chromium: Browser, serve: Serve, fake: ProviderFake) -> None:
    """The page leads to the sign-in, a wrong key is refused, and a stream needs only the cookie."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key = str((await make_key(service, "alice")).key)
    page = await (await chromium.new_context(locale="en-US")).new_page()
    page.set_default_timeout(10_000)
    await page.goto(f"{service.url}/")
    await expect(page).to_have_url(f"{service.url}/signin")
    await page.fill("#key", "kt_" + "x" * 43)
    await page.press("#key", "Enter")
    await expect(page.locator("#note")).to_contain_text("not valid")
    await page.fill("#key", key)
    await page.press("#key", "Enter")
    await page.wait_for_url(f"{service.url}/")
    await page.uncheck("#grounded")
    await page.fill("#question", "Why?")
    await page.press("#question", "Enter")
    await page.locator('#current .text[aria-busy="false"]').wait_for(state="attached")
    assert len(fake.calls) == 1
    assert await page.evaluate("document.cookie") == ""
    await page.goto(f"{service.url}/signin")
    await expect(page.locator("#note")).to_contain_text("alice")
    await page.click("#signout")
    await expect(page.locator("#signout")).to_be_hidden()
    await page.goto(f"{service.url}/")
    await expect(page).to_have_url(f"{service.url}/signin")
