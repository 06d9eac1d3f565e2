"""The documents of all users: owners, filters, the drawer, and deletion."""

import pytest
from playwright.async_api import Browser, Page, expect

from tests.access import client, make_key
from tests.browser.test_admin_pages import sign_in
from tests.conftest import Serve, Service

pytestmark = pytest.mark.slow


async def open_documents(chromium: Browser, service: Service, query: str = "") -> Page:
    """Two documents of two users, and the page of an admin."""
    for user, tag in (("alice", "tea"), ("bob", "clocks")):
        async with client(service, await make_key(service, user)) as caller:
            body = {"title": f"Notes of {user}", "text": f"The tea of {user}.", "tags": [tag]}
            assert (await caller.post("/ai/upload", json=body)).status_code == 201
    page = await sign_in(chromium, service)
    await page.goto(f"{service.url}/admin/documents{query}")
    await expect(page.locator("tbody tr").first).to_be_visible()
    return page


async def test_documents_of_all_users_are_filtered(chromium: Browser, serve: Serve) -> None:
    """Each row names its owner; filters are those of the service and stay in the address."""
    page = await open_documents(chromium, await serve(auth="keys"))
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(2)
    await page.get_by_label("Owner").fill("alice")
    await page.keyboard.press("Enter")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("alice")
    await page.reload()
    await expect(rows).to_have_count(1)
    await page.get_by_role("button", name="Clear filters").click()
    await page.get_by_label("Tag").fill("clocks")
    await page.get_by_role("button", name="Filter", exact=True).click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("Notes of bob")


async def test_a_document_opens_in_the_drawer(chromium: Browser, serve: Serve) -> None:
    """The title opens the text with the keyboard; Escape closes the drawer."""
    page = await open_documents(chromium, await serve(auth="keys"))
    await page.get_by_role("button", name="Notes of alice").press("Enter")
    await expect(page.locator("#drawer .body")).to_contain_text("The tea of alice.")
    await page.keyboard.press("Escape")
    await expect(page.locator("#drawer")).to_be_hidden()


async def test_a_document_is_deleted_after_confirmation(chromium: Browser, serve: Serve) -> None:
    """Cancelling deletes nothing; confirming deletes this document only."""
    page = await open_documents(chromium, await serve(auth="keys"))
    row = page.locator("tbody tr", has_text="Notes of alice")
    await row.get_by_role("button", name="Delete").click()
    await page.keyboard.press("Escape")
    await expect(row).to_have_count(1)
    await row.get_by_role("button", name="Delete").click()
    await page.locator("dialog.dialog").get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)
    await expect(page.get_by_role("status").first).to_contain_text("Deleted “Notes of alice”.")
    await page.reload()
    await expect(page.locator("tbody tr")).to_have_count(1)
