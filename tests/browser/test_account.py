"""My account: limits and usage of the user, and keys from creation to revocation."""

from datetime import timedelta

import pytest
from playwright.async_api import Browser, expect

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP, Role
from service.core.encoding import utc_now
from service.core.ports import QuotaLimits
from tests.access import client
from tests.browser.test_admin_pages import sign_in
from tests.conftest import Serve
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow


async def test_users_see_only_their_own_usage(chromium: Browser, serve: Serve) -> None:
    """Totals count the answers of the user, also for an admin, who may see all of them."""
    service = await serve(auth="keys")
    at = utc_now() - timedelta(hours=1)
    rows = [
        build_outcome(build_intent(at=at, user_id=user), cost_nano_usd=20_000_000)
        for user in ("aiko", "aiko", "kenji")
    ]
    await write(service.services.database, rows)
    for role in (Role.USER, Role.ADMIN):
        page = await sign_in(chromium, service, role, "aiko")
        await page.goto(f"{service.url}/account")
        figures = page.locator(".tile .figure")
        await expect(figures.first).to_have_text("$0.0400")
        await expect(figures.nth(1)).to_have_text("2")


async def test_limits_have_bars(chromium: Browser, serve: Serve) -> None:
    """Each limit has its used share as a bar with an accessible value."""
    service = await serve(auth="keys")
    await store.put_user(
        service.services.database,
        BOOTSTRAP,
        "alice",
        limits=QuotaLimits(tokens_per_day=1000, concurrent=2),
    )
    page = await sign_in(chromium, service, Role.USER, "alice")
    await page.goto(f"{service.url}/account")

    await expect(page.locator(".limits li")).to_have_count(2)
    bar = page.get_by_role("meter", name="0 / 1,000")
    assert await bar.get_attribute("aria-valuenow") == "0"


async def test_a_key_is_created_rotated_and_revoked(chromium: Browser, serve: Serve) -> None:
    """A new key is shown once and works; its replacement too; a revoked key does not."""
    service = await serve(auth="keys")
    page = await sign_in(
        chromium, service, Role.USER, "alice", permissions=["clipboard-read", "clipboard-write"]
    )
    await page.goto(f"{service.url}/account")
    await page.get_by_role("button", name="New key").click()
    await page.get_by_label("Label").fill("laptop")
    await page.get_by_role("button", name="Create", exact=True).click()
    secret = page.locator("dialog .secret")
    first = await secret.inner_text()
    await page.get_by_role("button", name="Copy", exact=True).click()
    assert await page.evaluate("navigator.clipboard.readText()") == first
    await page.get_by_role("button", name="I have stored it").click()
    await expect(secret).to_have_count(0)
    assert first not in await page.content()

    row = page.locator("tbody tr", has_text="laptop")
    await row.get_by_role("button", name="Rotate").click()
    dialog = page.locator("dialog", has_text="Rotate")
    await dialog.get_by_role("combobox").select_option("0")
    await dialog.get_by_role("button", name="Rotate").click()
    second = await secret.inner_text()
    await page.keyboard.press("Escape")
    await expect(row).to_have_count(1)
    for key, status in ((first, 401), (second, 200)):
        async with client(service, key) as caller:
            assert (await caller.get("/auth/session")).status_code == status

    await row.get_by_role("button", name="Revoke").click()
    await page.get_by_role("button", name="Cancel").click()
    await expect(row).to_have_count(1)
    await row.get_by_role("button", name="Revoke").click()
    await page.locator("dialog").get_by_role("button", name="Revoke").click()
    await expect(row).to_have_count(0)
    async with client(service, second) as caller:
        assert (await caller.get("/auth/session")).status_code == 401
    await page.get_by_label("Also revoked").check()
    await expect(row.first).to_contain_text("Revoked")


async def test_a_refused_key_is_explained_in_the_form(chromium: Browser, serve: Serve) -> None:
    """A problem of the service is shown in the dialog, which stays open."""
    service = await serve(auth="keys")
    page = await sign_in(
        chromium, service, Role.USER, "alice", expires_at=utc_now() + timedelta(days=1)
    )
    await page.goto(f"{service.url}/account")
    await page.get_by_role("button", name="New key").click()
    await page.get_by_role("button", name="Create", exact=True).click()

    await expect(page.locator("dialog [role=alert]")).to_contain_text("cannot outlive")
    await expect(page.locator("dialog.dialog")).to_be_visible()
