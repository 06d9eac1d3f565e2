"""The page behind nginx: with the configurations in deploy/, and with a plain `proxy_pass`."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from service.core.auth.principals import Role
from tests.access import make_key
from tests.browser.conftest import Open
from tests.browser.test_event_source import READ
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake, default_text
from tests.proxies import nginx, nginx_prefix, plain_nginx

pytestmark = pytest.mark.slow

QUESTION = "Can I return opened tea?"


@pytest.mark.parametrize(
    "proxy", [nginx, nginx_prefix, plain_nginx], ids=lambda proxy: proxy.__name__
)
async def test_page_answers_behind_a_proxy(
    serve: Serve, open_page: Open, tmp_path: Path, proxy: type
) -> None:
    """The page loads, answers and resumes its answer after a reload; nothing fails."""
    service = await serve(seeded=True)
    async with proxy(service.url, tmp_path) as url:
        visit = await open_page(url, ignore_https_errors=True)
        await visit.ask(QUESTION)
        await expect(visit.page.locator("#current .text")).to_contain_text("returned")
        assert visit.complaints == []
        await visit.page.goto(f"{url}/docs")
        await visit.page.locator(".opblock").first.wait_for()
        assert visit.complaints == []


async def test_sign_in_under_a_path(
    serve: Serve, fake: ProviderFake, chromium: Browser, tmp_path: Path
) -> None:
    """With KOTAE_AUTH=keys the sign-in, its cookie and an EventSource work under a path."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    key = str((await make_key(service, "alice")).key)
    async with nginx_prefix(service.url, tmp_path) as url:
        context = await chromium.new_context(locale="en-US", ignore_https_errors=True)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        await page.goto(url)
        await expect(page).to_have_url(f"{url}/signin")
        await page.fill("#key", key)
        await page.press("#key", "Enter")
        await page.wait_for_url(f"{url}/")
        stream = f"{url}/ai/stream?prompt=Why&grounded=false"
        (reading,) = await page.evaluate(READ, [stream])
        (cookie,) = await context.cookies()
        await context.close()
    assert reading["text"] == default_text("Why", 8)
    assert (cookie["name"], cookie["path"]) == ("__Secure-kotae", "/kotae")


async def test_pages_under_a_path(serve: Serve, chromium: Browser, tmp_path: Path) -> None:
    """Pages of admins return from the sign-in, load and link each other under a path."""
    service = await serve(auth="keys")
    key = str((await make_key(service, "aiko", Role.ADMIN)).key)
    async with nginx_prefix(service.url, tmp_path) as url:
        context = await chromium.new_context(locale="en-US", ignore_https_errors=True)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        await page.goto(f"{url}/admin/system")
        await page.fill("#key", key)
        await page.press("#key", "Enter")
        await page.wait_for_url(f"{url}/admin/system")
        await expect(page.locator("main")).to_contain_text("Search index")
        for name in ("Overview", "My account", "Documents"):
            await page.get_by_role("link", name=name).click()
            await expect(page.locator("h1")).to_have_text(name)
        assert page.url.startswith(f"{url}/admin/documents")
        await page.click("#signout")
        await page.wait_for_url(f"{url}/signin")
        await context.close()
    assert failures == []


async def test_blocked_page_explains_the_remedy(
    serve: Serve, chromium: Browser, tmp_path: Path
) -> None:
    """Without Host and Sec-Fetch-Site the page says what to configure, and that works."""
    service = await serve(seeded=True)
    async with plain_nginx(service.url, tmp_path) as url:
        origin = url.replace("localhost", "kotae.test")
        page = await (await chromium.new_context(locale="en-US")).new_page()
        await page.goto(f"{origin}/")
        await page.fill("#question", QUESTION)
        await page.press("#question", "Enter")
        await expect(page.locator("#blocked")).to_contain_text("refuses requests from this page")
        remedy = await page.inner_text("#blocked-remedy")
        assert "proxy_set_header Host $http_host;" in remedy
        assert f"KOTAE_ALLOWED_ORIGINS={origin}" in remedy
    service = await serve(seeded=True, data_dir=tmp_path / "b", allowed_origins=[origin])
    async with plain_nginx(service.url, tmp_path, int(origin.rpartition(":")[2])):
        await page.reload()
        await page.fill("#question", QUESTION)
        await page.press("#question", "Enter")
        await expect(page.locator("#current .text")).to_contain_text("returned")
        await expect(page.locator("#blocked")).to_be_hidden()
