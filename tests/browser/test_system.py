"""The system page: the state of the service in words, refreshed while it is visible."""

import pytest
from playwright.async_api import Browser, Page, Route, expect

from service.core.auth.principals import Role
from tests.access import client, make_key
from tests.browser.test_admin_pages import sign_in
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake

pytestmark = pytest.mark.slow
REFRESH_MS = 15_000  # at most, to the next refresh


async def open_system(chromium: Browser, serve: Serve, fake: ProviderFake) -> tuple[Page, Service]:
    """Open the page of a service with a provider."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m", seeded=True)
    page = await sign_in(chromium, service)
    await page.goto(f"{service.url}/admin/system")
    await expect(page.locator(".tiles")).to_be_visible()
    return page, service


async def test_figures_are_refreshed(chromium: Browser, serve: Serve, fake: ProviderFake) -> None:
    """An answer appears among the written rows without a reload; the provider is listed."""
    page, service = await open_system(chromium, serve, fake)
    await expect(page.locator("tbody tr")).to_have_count(1)
    await expect(page.locator("tbody tr .pill")).to_have_text("Working")
    key = await make_key(service, "bob", Role.USER)
    async with client(service, key) as caller:
        answer = await caller.post("/ai/test", json={"prompt": "Why?", "grounded": False})
        assert answer.status_code == 200
    written = page.locator("dt", has_text="Rows written").locator("+ dd")
    await expect(written).to_have_text("1", timeout=REFRESH_MS)


async def test_a_degraded_service_is_shown(
    chromium: Browser, serve: Serve, fake: ProviderFake
) -> None:
    """While workers are degraded the page names them and the error; then it recovers."""
    page, _ = await open_system(chromium, serve, fake)

    async def degrade(route: Route) -> None:
        response = await route.fetch()
        state = {"status": "degraded", "degraded": ["writer"], "database": "disk I/O error"}
        await route.fulfill(response=response, json=await response.json() | state)

    await page.route("**/health/ready", degrade)
    status = page.locator(".tile").first
    await expect(status).to_contain_text("Degraded: writer", timeout=REFRESH_MS)
    await expect(page.locator(".terms .problem")).to_have_text("disk I/O error")
    await page.unroute("**/health/ready")
    await expect(status).to_contain_text("Ready", timeout=REFRESH_MS)
    await expect(page.locator('main [role="alert"]')).to_be_empty()


async def test_a_lost_connection_is_shown(
    chromium: Browser, serve: Serve, fake: ProviderFake
) -> None:
    """Without a connection the last figures remain, with an explanation above the page."""
    page, _ = await open_system(chromium, serve, fake)
    await page.route("**/health/**", lambda route: route.abort())
    await expect(page.locator("#connection")).to_be_visible(timeout=REFRESH_MS)
    await expect(page.locator(".tiles")).to_be_visible()
    await page.unroute("**/health/**")
    await expect(page.locator("#connection")).to_be_hidden(timeout=2 * REFRESH_MS)
