"""Billing for admins: balances, credit that is added, customers of Stripe, decisions, webhooks."""

from datetime import timedelta

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import APIResponse, Browser, Locator, Page, Route, expect

from service.core.billing.inbox import (
    InboxState,
    ReceivedEvent,
    delay_event,
    list_due,
    list_received,
    store_event,
)
from service.core.billing.ledger import EntryKind, NewEntry, add_entries
from service.core.billing.meter_events import EventState, create_missing_events, record_attempt
from service.core.encoding import utc_now
from tests.billing import connect, list_events, use
from tests.browser.test_admin_pages import PHONE, sign_in
from tests.browser.test_billing_page import fill_ledger, list_rows
from tests.conftest import Serve, Service
from tests.fakes.stripe import KEY, METER, StripeFake

pytestmark = pytest.mark.slow

DOLLAR = 10**9
REASON = "Stripe has rejected it: no such customer"


async def open_billing(chromium: Browser, service: Service, **options: object) -> Page:
    """The page of an admin."""
    page = await sign_in(chromium, service, **options)  # type: ignore[arg-type]
    await page.goto(f"{service.url}/admin/billing")
    await page.wait_for_load_state("networkidle")
    return page


def find_rows(page: Page, table: str) -> Locator:
    """The rows of a table."""
    return page.get_by_role("table", name=table, exact=True).locator("tbody tr")


async def fill_grant(page: Page, user: str, amount: str) -> Locator:
    """Open the form of a credit and fill it; returns the dialog."""
    await page.get_by_role("button", name="Add credit").first.click()
    dialog = page.locator("dialog.dialog")
    await dialog.locator("[name=user]").fill(user)
    await dialog.get_by_label("Amount in USD").fill(amount)
    await dialog.get_by_label("Note").fill("Welcome")
    return dialog


async def add_wallets(service: Service, count: int) -> None:
    """Users with a balance each."""
    async with service.services.database.transaction() as session:
        entries = [
            NewEntry(
                user_id=f"user-{n:03}",
                kind=EntryKind.GRANT,
                amount_nano_usd=n * DOLLAR + 1,
                cause=f"grant:user-{n}",
            )
            for n in range(count)
        ]
        await add_entries(session, entries, utc_now())


async def add_reviewed(service: Service) -> None:
    """A customer with usage that was delivered, and an event that needs a decision."""
    database, now = service.services.database, utc_now()
    begun = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    await connect(database, "alice", begun - timedelta(hours=1))
    for hours, nano_usd in ((0, 1_500_000_000), (1, 2_345_678)):
        await use(database, nano_usd, begun + timedelta(hours=hours), "alice")
    events = await create_missing_events(database, begun - timedelta(hours=1), now)
    delivered, rejected = sorted(events, key=lambda event: event.hour)
    await record_attempt(database, delivered, EventState.DELIVERED, now)
    await record_attempt(database, rejected, EventState.REVIEW, now, error=REASON)


async def add_failed_webhook(service: Service) -> None:
    """An event of Stripe that was given up."""
    database, now = service.services.database, utc_now()
    received = ReceivedEvent("evt_1", "checkout.session.completed", "cs_1")
    await store_event(database, received, now)
    async with database.read_session() as session:
        (event,) = await list_due(session, now, 1)
    await delay_event(database, event, "only payments in usd are credited", now, is_final=True)


async def test_a_double_click_adds_credit_once(chromium: Browser, serve: Serve) -> None:
    """The balance and the user's entries have one amount, with its note."""
    service = await serve(auth="keys")
    page = await open_billing(chromium, service)
    await expect(page.get_by_text("No balances yet")).to_be_visible()
    dialog = await fill_grant(page, "alice", "5.25")
    await dialog.get_by_role("button", name="Add", exact=True).dblclick()
    await expect(dialog).to_have_count(0)
    await expect(find_rows(page, "Balances")).to_contain_text("$5.25")
    await page.get_by_role("button", name="alice").click()
    await expect(list_rows(page)).to_have_count(1)
    await expect(list_rows(page)).to_contain_text("Welcome")
    assert page.url.endswith("/admin/billing?user=alice")


async def test_credit_is_added_once_if_a_response_is_lost(chromium: Browser, serve: Serve) -> None:
    """The form stays open with its key; sending it again adds nothing."""
    service = await serve(auth="keys")
    page = await open_billing(chromium, service)
    lost: list[APIResponse] = []

    async def lose(route: Route) -> None:
        if not lost:
            lost.append(await route.fetch())
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/billing/grants", lose)
    dialog = await fill_grant(page, "alice", "5")
    add = dialog.get_by_role("button", name="Add", exact=True)
    await add.click()
    await expect(dialog.get_by_role("alert")).to_contain_text("cannot be reached")
    await add.click()
    await expect(dialog).to_have_count(0)
    assert lost[0].status == 201
    await expect(find_rows(page, "Balances")).to_contain_text("$5.00")


async def test_an_adjustment_can_be_negative(chromium: Browser, serve: Serve) -> None:
    """A credit cannot: the form does not send it."""
    service = await serve(auth="keys")
    page = await open_billing(chromium, service)
    dialog = await fill_grant(page, "alice", "-2.5")
    add = dialog.get_by_role("button", name="Add", exact=True)
    await add.click()
    assert await dialog.get_by_label("Amount in USD").evaluate("input => !input.validity.valid")
    await dialog.get_by_label("Kind").select_option("adjustment")
    await add.click()
    await expect(find_rows(page, "Balances")).to_contain_text("-$2.50")


async def test_a_refused_credit_is_explained_in_the_form(chromium: Browser, serve: Serve) -> None:
    """A problem of the service keeps the form open."""
    page = await open_billing(chromium, await serve(auth="keys"))
    dialog = await fill_grant(page, "alice", "0.000000001")
    await dialog.get_by_label("Amount in USD").evaluate("input => (input.min = -1)")
    await dialog.get_by_label("Amount in USD").fill("-1")
    await dialog.get_by_role("button", name="Add", exact=True).click()
    await expect(dialog.get_by_role("alert")).not_to_be_empty()
    await expect(page.get_by_text("No balances yet")).to_be_visible()


async def test_balances_are_paged_and_open(chromium: Browser, serve: Serve) -> None:
    """A button loads the next users; any user opens by id, with the entries and older ones."""
    service = await serve(auth="keys")
    await add_wallets(service, 60)
    await fill_ledger(service, "sakura", count=50)
    page = await open_billing(chromium, service)
    rows, more = find_rows(page, "Balances"), page.get_by_role("button", name="Load more").first
    await expect(rows).to_have_count(50)
    await more.click()
    await expect(rows).to_have_count(61)
    await expect(more).to_be_hidden()
    await expect(rows.last).to_contain_text("$59.000000001")

    await page.get_by_role("searchbox").fill("sakura")
    await page.get_by_role("button", name="Show entries").click()
    await expect(list_rows(page)).to_have_count(50)
    await page.locator("#drawer").get_by_role("button", name="Load more").click()
    await expect(list_rows(page)).to_have_count(56)
    await page.get_by_role("link", name="Show the answer").first.click()
    assert page.url.startswith(f"{service.url}/admin/log?id=")


async def test_the_address_opens_a_user(chromium: Browser, serve: Serve) -> None:
    """A link to a user shows the entries; a user without any has a balance of 0."""
    service = await serve(auth="keys")
    page = await open_billing(chromium, service)
    await page.goto(f"{service.url}/admin/billing?user=kenji")
    await expect(page.locator("#drawer .figure").first).to_have_text("$0.00")
    await expect(page.locator("#drawer")).to_contain_text("No entries yet")
    await page.keyboard.press("Escape")
    await expect(page).to_have_url(f"{service.url}/admin/billing")


async def test_a_customer_is_connected_and_disconnected(chromium: Browser, serve: Serve) -> None:
    """An id that is not one of Stripe is not sent; the end is confirmed before."""
    service = await serve(auth="keys")
    page = await open_billing(chromium, service)
    await page.get_by_role("button", name="Connect a customer").click()
    dialog = page.locator("dialog.dialog")
    connect_button = dialog.get_by_role("button", name="Connect a customer")
    await dialog.get_by_label("User").fill("alice")
    await dialog.get_by_label("Customer").fill("alice")
    await connect_button.click()
    assert await dialog.get_by_label("Customer").evaluate("input => !input.validity.valid")
    await dialog.get_by_label("Customer").fill("cus_alice1")
    await connect_button.click()
    row = find_rows(page, "Metered usage")
    await expect(row).to_contain_text("cus_alice1")
    await row.get_by_role("button", name="Disconnect").click()
    await page.keyboard.press("Escape")
    await expect(row.get_by_role("button", name="Disconnect")).to_have_count(1)
    await row.get_by_role("button", name="Disconnect").click()
    await dialog.get_by_role("button", name="Disconnect").click()
    await expect(row.get_by_role("button", name="Disconnect")).to_have_count(0)


@pytest.mark.parametrize(("button", "state"), [("Send", "pending"), ("Do not send", "billed")])
async def test_an_event_is_decided(
    chromium: Browser, serve: Serve, button: str, state: str
) -> None:
    """The usage shows what is not delivered; a decision is confirmed before, and moves it."""
    service = await serve(auth="keys")
    await add_reviewed(service)
    page = await open_billing(chromium, service)
    row = find_rows(page, "Metered usage")
    for text in ("$1.502345678", "$1.50", "$0.002345678 in review"):
        await expect(row).to_contain_text(text)
    event = find_rows(page, "Events that need a decision")
    await expect(event).to_contain_text(REASON)
    await event.get_by_role("button", name=button, exact=True).click()
    dialog = page.locator("dialog.dialog")
    await expect(dialog).to_contain_text("$0.002345678 of the hour")
    await dialog.get_by_role("button", name=button, exact=True).click()
    await expect(event).to_have_count(0)
    text = "$0.002345678 to be sent" if state == "pending" else "$0.002345678 by decision"
    await expect(row).to_contain_text(text)
    events = await list_events(service.services.database)
    assert state in {item.state for item in events}


async def test_a_failed_webhook_is_processed_again(chromium: Browser, serve: Serve) -> None:
    """It shows why it was given up, and leaves the list when it is to be processed again."""
    service = await serve(auth="keys")
    await add_failed_webhook(service)
    page = await open_billing(chromium, service)
    row = find_rows(page, "Failed webhooks")
    for text in ("checkout.session.completed", "evt_1", "only payments in usd"):
        await expect(row).to_contain_text(text)
    await row.get_by_role("button", name="Process again").click()
    await expect(row).to_have_count(0)
    async with service.services.database.read_session() as session:
        (event,) = await list_received(session)
    assert event.state is InboxState.PENDING


async def test_the_last_day_is_compared_with_stripe(chromium: Browser, serve: Serve) -> None:
    """When asked for, the page lists the differences with their causes; failures are explained."""
    async with StripeFake() as stripe:
        options = {"stripe_key": KEY, "stripe_meter": METER, "stripe_base_url": stripe.url}
        service = await serve(auth="keys", **options)
        await add_reviewed(service)
        page = await open_billing(chromium, service)
        meters, stripe.meters = stripe.meters, []
        await page.get_by_role("button", name="Compare now").click()
        await expect(page.locator(".panel").last.get_by_role("alert")).not_to_be_empty()
        stripe.meters = meters
        await page.get_by_role("button", name="Compare now").click()
        row = find_rows(page, "Differences").filter(has_text="In review")
        await expect(row).to_contain_text("$0.002345678")
        await expect(find_rows(page, "Differences")).to_have_count(2)
        results = await Axe().run(page)
        assert results.response["violations"] == [], results.generate_report()


@pytest.mark.parametrize(
    ("locale", "scheme", "width"),
    [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("ja-JP", "light", PHONE)],
)
async def test_a_filled_page_is_accessible_and_fits(
    chromium: Browser, serve: Serve, locale: str, scheme: str, width: int
) -> None:
    """With rows everywhere, a form and the drawer no violation is reported; nothing overflows."""
    service = await serve(auth="keys")
    await add_reviewed(service)
    await add_failed_webhook(service)
    await add_wallets(service, 3)
    await fill_ledger(service, "user-000")
    page = await open_billing(
        chromium,
        service,
        locale=locale,
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        reduced_motion="reduce",
    )
    for opener in (None, "button.primary", "button.open"):
        if opener:
            await page.keyboard.press("Escape")
            await page.locator(opener).first.click()
            await page.wait_for_load_state("networkidle")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        results = await Axe().run(page)
        assert results.response["violations"] == [], (opener, results.generate_report())
