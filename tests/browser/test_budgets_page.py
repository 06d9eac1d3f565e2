"""The page of budgets: creation, changes, deletion, bars, and alerts."""

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Page, expect

from service.core.budgets import outbox
from service.core.budgets.outbox import create_alerts
from service.core.encoding import utc_now
from tests.browser.test_admin_pages import PHONE, sign_in
from tests.budgets import create_budget
from tests.conftest import Serve, Service
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow


async def open_budgets(chromium: Browser, service: Service, **options: object) -> Page:
    """The page of an admin."""
    page = await sign_in(chromium, service, **options)  # type: ignore[arg-type]
    await page.goto(f"{service.url}/admin/budgets")
    await page.wait_for_load_state("networkidle")
    return page


async def fill_database(service: Service) -> None:
    """Budgets of several subjects, one of them used up, with alerts in every state."""
    database = service.services.database
    intent = build_intent(user_id="alice", model="gpt-5")
    await write(database, [build_outcome(intent, cost_nano_usd=412_300_000_000)])
    await write(database, [build_outcome(build_intent(user_id="bob"), cost_nano_usd=None)])
    amounts = {"all": 500, "user:alice": 400, "model:gpt-5": 450, "user:b": 9}
    for subject, dollars in amounts.items():
        await create_budget(database, subject, amount_nano_usd=dollars * 10**9)
    alerts = await create_alerts(database, utc_now(), deliver=True)
    for n, error in ((0, None), (1, "the receiver responded with status 500")):
        await outbox.record_delivery(database, alerts[n], utc_now(), error=error, is_final=n == 1)


def find_row(page: Page, name: str) -> Locator:
    """The row of a budget."""
    table = page.get_by_role("table", name="Budgets")
    return table.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))


async def test_a_budget_is_created_changed_and_deleted(chromium: Browser, serve: Serve) -> None:
    """The form has what the API has; deleting asks before."""
    page = await open_budgets(chromium, await serve(auth="keys"))
    await expect(page.get_by_text("No budgets yet")).to_be_visible()
    await page.get_by_role("button", name="New budget").click()
    dialog = page.locator("dialog.dialog")
    await expect(dialog.get_by_label("Id or name")).to_be_hidden()
    await dialog.locator('[name="budget"]').fill("alice-day")
    await dialog.get_by_label("Applies to").select_option("user")
    await dialog.get_by_label("Id or name").fill("alice")
    await dialog.get_by_label("Period").select_option("day")
    await dialog.get_by_label("Amount in USD").fill("2.5")
    await dialog.get_by_label("Alerts at").fill("75, 100")
    await dialog.get_by_role("button", name="Save").click()
    row = find_row(page, "alice-day")
    for text in ("User alice", "$2.50", "0 % today", "75 %, 100 %", "Only alert"):
        await expect(row).to_contain_text(text)

    await row.get_by_role("button", name="Change").click()
    await dialog.get_by_label("Beyond the amount").select_option("refuse")
    await dialog.get_by_label("Amount in USD").fill("3")
    await dialog.get_by_role("button", name="Save").click()
    await expect(row).to_contain_text("Refuse requests")
    await expect(row).to_contain_text("$3.00")

    await row.get_by_role("button", name="Delete").click()
    await page.keyboard.press("Escape")
    await expect(row).to_have_count(1)
    await row.get_by_role("button", name="Delete").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)


async def test_a_problem_is_shown_in_the_form(chromium: Browser, serve: Serve) -> None:
    """An unknown plan keeps the form open with the reason; nothing is created."""
    page = await open_budgets(chromium, await serve(auth="keys"))
    await page.get_by_role("button", name="New budget").click()
    dialog = page.locator("dialog.dialog")
    await dialog.locator('[name="budget"]').fill("b")
    await dialog.get_by_label("Applies to").select_option("plan")
    await dialog.get_by_label("Id or name").fill("none")
    await dialog.get_by_label("Amount in USD").fill("1")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("no plan has this name")


async def test_bars_show_what_is_spent(chromium: Browser, serve: Serve) -> None:
    """The bar has the percentage as its name, and the tone of the threshold."""
    service = await serve(auth="keys")
    await fill_database(service)
    page = await open_budgets(chromium, service)
    expected = (("all", 82, "warn"), ("user-alice", 103, "bad"), ("user-b", 0, "plain"))
    for name, percent, tone in expected:
        bar = find_row(page, name).get_by_role("meter")
        await expect(bar).to_have_attribute("data-tone", tone)
        assert f"{percent} %" in (await bar.get_attribute("aria-label") or "")
    await expect(find_row(page, "all")).to_contain_text("1 more of unknown cost")


async def test_a_failed_alert_is_delivered_again(chromium: Browser, serve: Serve) -> None:
    """Alerts show their delivery; one that was given up can be delivered again."""
    service = await serve(auth="keys")
    await fill_database(service)
    page = await open_budgets(chromium, service)
    table = page.get_by_role("table", name="Alerts")
    failed = table.get_by_role("row").filter(has_text="Not delivered")
    await expect(failed).to_contain_text("status 500")
    await expect(table.get_by_text("Delivered", exact=True)).to_have_count(1)
    await failed.get_by_role("button", name="Deliver again").click()
    await expect(failed).to_have_count(0)


@pytest.mark.parametrize(
    ("locale", "scheme", "width"),
    [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("ja-JP", "light", PHONE)],
)
async def test_a_filled_page_is_accessible_and_fits(
    chromium: Browser, serve: Serve, locale: str, scheme: str, width: int
) -> None:
    """With budgets, alerts and an open form no violation is reported, and nothing overflows."""
    service = await serve(auth="keys")
    await fill_database(service)
    viewport = {"width": width, "height": 900}
    page = await open_budgets(
        chromium,
        service,
        locale=locale,
        color_scheme=scheme,
        viewport=viewport,
        reduced_motion="reduce",  # a fading text has a lower contrast
    )
    for opens_form in (False, True):
        if opens_form:
            await page.locator("button.primary").first.click()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        results = await Axe().run(page)
        assert results.response["violations"] == [], results.generate_report()
