"""The audit log page: entries with links, filters in the address, exports."""

import json
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from service.api.pages import WEB
from service.core.audit_log import Action
from tests.browser.admin_data import fill
from tests.browser.test_admin_pages import PHONE, open_path, sign_in
from tests.conftest import Serve, Service

pytestmark = pytest.mark.slow

TEXTS = "audit_log_text.js"
ROWS = ".audit tbody tr"


async def open_audit_log(
    chromium: Browser, serve: Serve, query: str = "", **options
) -> tuple[Page, Service]:
    """Open the audit log of a service with users as an admin."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service, **options)
    await open_path(page, service, f"/admin/audit-log{query}")
    return page, service


async def test_entries_say_who_did_what(chromium: Browser, serve: Serve) -> None:
    """Commands, keys and limits, with old and new values, in words of the page's language."""
    page, _ = await open_audit_log(chromium, serve)
    limited = page.locator(ROWS, has_text="Plan or limits changed").first
    await expect(limited).to_contain_text("Plan default → 200,000 tokens/day · $50.00/month")
    await expect(page.locator(ROWS, has_text="Plan changed").first).to_contain_text(
        "on the command line"
    )
    await page.click("#language")

    await expect(limited).to_have_count(0)
    await expect(page.locator(ROWS, has_text="プラン・上限の変更").first).to_contain_text(
        "プラン default → 200,000 トークン/日"
    )


async def test_a_read_of_the_log_page_is_listed(chromium: Browser, serve: Serve) -> None:
    """Opening an answer adds an entry with a link that opens it."""
    page, service = await open_audit_log(chromium, serve)
    await open_path(page, service, "/admin/log")
    await page.locator(".log tbody tr").first.get_by_role("button").click()
    await expect(page.locator("#drawer .attempts")).to_be_visible()
    await open_path(page, service, "/admin/audit-log?action=answer.read")
    await page.locator(ROWS).get_by_role("link").last.click()

    await page.wait_for_url("**/admin/log?id=*")
    await expect(page.locator("#drawer .attempts")).to_be_visible()


async def test_filters_are_in_the_address(chromium: Browser, serve: Serve) -> None:
    """User, actor, action and period restrict the entries, and survive a reload."""
    page, _ = await open_audit_log(chromium, serve)
    await page.select_option("[name=action]", "key.created")
    await page.fill("[name=user_id]", "support-bot")
    await page.fill("[name=actor]", "cli")
    await page.select_option("[name=since]", "-24h")
    await expect(page.locator(ROWS)).to_have_count(1)
    await page.reload()

    await expect(page.locator(ROWS)).to_have_count(1)
    assert await page.input_value("[name=actor]") == "cli"


async def test_the_export_has_the_filters(chromium: Browser, serve: Serve) -> None:
    """The link downloads the entries that match."""
    page, _ = await open_audit_log(chromium, serve, "?user_id=bob.smith")
    async with page.expect_download() as waiting:
        await page.get_by_role("link", name="NDJSON").click()
    lines = Path(await (await waiting.value).path()).read_text().splitlines()

    actions = ["user.disabled", "key.created"]
    assert [json.loads(line)["action"] for line in lines] == actions
    await expect(page.locator(ROWS)).to_have_count(len(actions))


def test_every_action_has_a_text() -> None:
    """The page can filter by each action, and names it in both languages."""
    script, texts = ((WEB / "admin" / name).read_text() for name in ("audit_log.js", TEXTS))

    for action in Action:
        assert f'"{action}"' in script
        assert texts.count(f" audit_{action.replace('.', '_')}: ") == 2


async def test_entries_fit_on_a_phone(chromium: Browser, serve: Serve) -> None:
    """Ids and limits wrap within the window, and axe reports nothing."""
    page, _ = await open_audit_log(chromium, serve, viewport={"width": PHONE, "height": 800})
    await expect(page.locator(ROWS).first).to_be_visible()

    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()
