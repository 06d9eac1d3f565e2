"""My credit: a purchase with a stand-in for Checkout, the entries, and what is explained."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Page, expect

from service.core.auth.principals import Role
from service.core.billing.ledger import EntryKind, NewEntry, add_entries
from service.core.encoding import utc_now
from service.core.provider_file import ModelPrice
from tests.access import make_key
from tests.browser.test_admin_pages import PHONE, sign_in
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.fakes.stripe import KEY, SECRET, StripeFake
from tests.proxies import find_free_port, nginx_prefix
from tests.records import build_intent, build_outcome
from tests.rows import write
from tests.wallets import make_prepaid

pytestmark = pytest.mark.slow

DOLLAR = 10**9
PRICES = {"m": ModelPrice(input=Decimal(1), output=Decimal(2))}
KINDS = (
    (EntryKind.TOP_UP, 20 * DOLLAR, "payment:pi_1", None),
    (EntryKind.GRANT, 5 * DOLLAR, "grant:1", "Welcome"),
    (EntryKind.REFUND, -2 * DOLLAR, "refund:re_1", None),
    (EntryKind.DISPUTE, -3 * DOLLAR, "dispute:dp_1:withdrawn", None),
    (EntryKind.ADJUSTMENT, -1_234_567, "adjustment:1", "<b>Counted twice</b>"),
)


@pytest.fixture
async def stripe() -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake() as stripe:
        yield stripe


async def serve_top_ups(
    serve: Serve, stripe: StripeFake, *, sends: bool = True, **options: Any
) -> Service:
    """A service where alice pays at the fake, which `sends` its webhooks at once."""
    port = options.setdefault("port", find_free_port())
    values = {
        "auth": "keys",
        "stripe_key": KEY,
        "stripe_webhook_secret": SECRET,
        "stripe_base_url": stripe.url,
        "public_url": f"http://127.0.0.1:{port}",
    }
    service = await serve(**values | options)
    await make_prepaid(service.services.database)
    if sends:
        stripe.payments.endpoint = f"{service.url}/billing/webhook"
    return service


async def open_credit(
    chromium: Browser, service: Service, user: str = "alice", query: str = "", **options: Any
) -> Page:
    """The page of a user, once it has its balance."""
    page = await sign_in(chromium, service, Role.USER, user, **options)
    await page.goto(f"{service.url}/account/billing{query}")
    await expect(page.locator(".tile .figure").first).to_be_visible()
    return page


async def begin_payment(page: Page, stripe: StripeFake, amount: str = "20") -> None:
    """Enter an amount and go to Checkout."""
    await page.get_by_label("Amount in USD").fill(amount)
    await page.get_by_role("button", name="Pay with Stripe").click()
    await page.wait_for_url(f"{stripe.url}/pay/*")


def list_rows(page: Page) -> Locator:
    """The rows of the entries."""
    return page.get_by_role("table", name="Entries").locator("tbody tr")


async def fill_ledger(service: Service, user: str = "alice", count: int = 0) -> None:
    """Entries of all kinds, one of them of an answer, and `count` others before."""
    outcome = build_outcome(build_intent(user_id=user), cost_nano_usd=10_000)
    entries: list[tuple[EntryKind, int, str, str | None]] = [
        (EntryKind.DEBIT, -1000, f"answer:a{n}:1", None) for n in range(count)
    ]
    entries += [*KINDS, (EntryKind.DEBIT, -12_500, f"answer:{outcome.intent.id}:1", None)]
    await write(service.services.database, [outcome])
    async with service.services.database.transaction() as session:
        new_entries = [
            NewEntry(user_id=user, kind=kind, amount_nano_usd=amount, cause=cause, note=note)
            for kind, amount, cause, note in entries
        ]
        await add_entries(session, new_entries, utc_now())


async def test_a_purchase_is_credited_once(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """Paid at Checkout, reported three times, shown once: also after a reload."""
    stripe.payments.copies = 3
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    await begin_payment(page, stripe)
    await expect(page.locator("h1")).to_have_text("Pay $20.00")
    await page.click("#pay")
    await page.wait_for_url(f"{service.url}/account/billing*")
    notice = page.get_by_text("The payment has arrived")
    await expect(notice).to_be_visible()
    await expect(page.locator(".tile .figure").first).to_have_text("$20.00")
    await expect(list_rows(page)).to_have_count(1)
    await expect(list_rows(page)).to_contain_text("+$20.00")
    await expect(page).to_have_url(f"{service.url}/account/billing")

    await page.reload()
    await expect(list_rows(page)).to_have_count(1)
    await expect(notice).to_have_count(0)
    assert len(stripe.payments.list_objects("pi_")) == 1


async def test_credit_is_used_by_an_answer(
    chromium: Browser, serve: Serve, stripe: StripeFake, fake: ProviderFake
) -> None:
    """Without credit a question is refused with a link; paid, it is answered and debited once."""
    service = await serve_top_ups(
        serve,
        stripe,
        prices=PRICES,
        openai_base_url=fake.base_url,
        openai_api_key="k",
        model="m",
    )
    page = await sign_in(chromium, service, Role.USER, "alice")
    await page.goto(service.url)
    await page.uncheck("#grounded")
    await page.fill("#question", "Why?")
    await page.press("#question", "Enter")
    await page.get_by_role("link", name="Show my credit").click()
    await begin_payment(page, stripe)
    await page.click("#pay")
    await expect(page.get_by_text("The payment has arrived")).to_be_visible()

    await page.get_by_role("link", name="Ask", exact=True).click()
    await page.uncheck("#grounded")
    await page.fill("#question", "Why?")
    await page.press("#question", "Enter")
    await page.locator('#current [data-state="completed"]').wait_for()
    charge = await page.locator("#current .facts .charge dd").inner_text()
    await service.wait_idle()
    await page.goto(f"{service.url}/account/billing")
    await expect(list_rows(page)).to_have_count(2)
    await expect(list_rows(page).first).to_contain_text(f"-{charge}")
    assert len(stripe.payments.list_objects("pi_")) == 1
    await page.get_by_role("link", name="Show the answer").click()
    await expect(page.locator("#drawer")).to_contain_text("Charged")


async def test_users_who_are_not_prepaid_need_no_credit(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The page says so instead of a form."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service, "bob")
    await expect(page.get_by_text("Your plan is not prepaid")).to_be_visible()
    await expect(page.get_by_label("Amount in USD")).to_have_count(0)


async def test_without_stripe_credit_cannot_be_bought(chromium: Browser, serve: Serve) -> None:
    """A prepaid user sees the balance, and whom to ask."""
    service = await serve(auth="keys")
    await make_prepaid(service.services.database)
    page = await open_credit(chromium, service)
    await expect(page.get_by_text("payments are not set up")).to_be_visible()
    await expect(page.get_by_text("1.25 times what its provider charges")).to_be_visible()
    await expect(page.get_by_label("Amount in USD")).to_have_count(0)


async def test_the_credit_appears_when_stripe_reports_it(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """Until then the page says so, also after a reload; it needs no other one afterwards."""
    service = await serve_top_ups(serve, stripe, sends=False)
    page = await open_credit(chromium, service)
    await begin_payment(page, stripe)
    await page.click("#pay")
    waiting = page.get_by_text("as soon as Stripe has reported the payment")
    await expect(waiting).to_be_visible()
    await page.reload()
    await expect(waiting).to_be_visible()
    await expect(list_rows(page)).to_have_count(0)

    stripe.payments.endpoint = f"{service.url}/billing/webhook"
    await stripe.payments.deliver_new(0)
    await expect(page.get_by_text("The payment has arrived")).to_be_visible()
    await expect(list_rows(page)).to_have_count(1)


async def test_a_payment_that_is_not_reported_is_awaited_for_a_while(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The requests end after about a minute; a button asks again."""
    service = await serve_top_ups(serve, stripe, sends=False)
    page = await sign_in(chromium, service, Role.USER, "alice")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.clock.install()
    await page.goto(f"{service.url}/account/billing?payment=success")
    await expect(page.get_by_text("as soon as Stripe has reported")).to_be_visible()
    button = page.get_by_role("button", name="Check again")
    for _ in range(40):  # seconds of the clock pass between requests
        await page.clock.run_for(5000)
        await page.wait_for_load_state("networkidle")
        if await button.count():
            break
    await expect(page.get_by_text("has not reported a new payment yet")).to_be_visible()
    count = len([url for url in requests if url.endswith("/billing?")])
    assert count <= 14
    await page.clock.run_for(120_000)
    assert len([url for url in requests if url.endswith("/billing?")]) == count

    stripe.payments.endpoint = f"{service.url}/billing/webhook"
    await button.click()
    await expect(page.get_by_text("as soon as Stripe has reported")).to_be_visible()


async def test_a_cancelled_payment_is_explained_once(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """Nothing was charged; after a reload the page does not mention it."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    await begin_payment(page, stripe)
    await page.click("#cancel")
    notice = page.get_by_text("Nothing was charged.")
    await expect(notice).to_be_visible()
    await expect(page).to_have_url(f"{service.url}/account/billing")
    await page.reload()
    await expect(page.get_by_text("No entries yet")).to_be_visible()
    await expect(notice).to_have_count(0)
    assert stripe.payments.list_objects("pi_") == []


async def test_a_refused_amount_is_explained(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The browser knows the bounds; what it lets pass is refused by the service, in words."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    amount, pay = page.get_by_label("Amount in USD"), page.get_by_role("button", name="Pay with")
    await expect(page.get_by_text("From $5.00 to $10,000.00")).to_be_visible()
    for value in ("4.99", "10001", "5.001", ""):
        await amount.fill(value)
        await pay.click()
        assert await amount.evaluate("input => !input.validity.valid"), value
    await amount.evaluate("input => (input.min = 0)")
    await amount.fill("1")
    await pay.click()
    await expect(page.locator(".top-up [role=alert]")).to_contain_text("between 5 and 10000 USD")
    await expect(pay).to_be_enabled()
    assert stripe.payments.calls == []


async def test_an_outage_of_stripe_is_explained(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The form stays, and works again afterwards."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    stripe.is_away = True
    await page.get_by_role("button", name="Pay with Stripe").click()
    await expect(page.locator(".top-up [role=alert]")).to_contain_text("nothing was charged")
    stripe.is_away = False
    await begin_payment(page, stripe)


async def test_a_double_click_begins_one_payment(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The button waits for Stripe; back from there, it works again."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    pay = page.get_by_role("button", name="Pay with Stripe")
    await pay.dblclick()
    await page.wait_for_url(f"{stripe.url}/pay/*")
    assert len(stripe.payments.list_objects("cs_")) == 1
    await page.evaluate("history.back()")
    await expect(pay).to_be_enabled()
    await begin_payment(page, stripe)


async def test_the_portal_and_invoices_are_for_those_who_paid(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """Before there is neither; afterwards a button and the invoices with their documents."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    portal = page.get_by_role("button", name="Payment methods")
    await expect(portal).to_have_count(0)
    await begin_payment(page, stripe)
    (customer,) = stripe.payments.list_objects("cus_")
    stripe.payments.add_invoice(customer["id"], 2200)
    await page.goto(f"{service.url}/account/billing")
    row = page.get_by_role("table", name="Invoices").locator("tbody tr")
    await expect(row).to_contain_text("$22.00")
    link = row.get_by_role("link", name="PDF")
    await expect(link).to_have_attribute("href", "https://pay.stripe.com/invoice/x/pdf")
    await portal.click()
    await page.wait_for_url(f"{stripe.url}/portal")


async def test_invoices_that_cannot_be_fetched_are_explained(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """The rest of the page is complete."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    await begin_payment(page, stripe)
    stripe.is_away = True
    await fill_ledger(service)
    await page.goto(f"{service.url}/account/billing")
    await expect(page.get_by_text("could not be fetched from Stripe")).to_be_visible()
    await expect(list_rows(page)).to_have_count(6)


async def test_entries_are_exact_and_link_to_answers(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """Each kind has its sign and all digits; an answer opens in the user's own list."""
    service = await serve_top_ups(serve, stripe)
    await fill_ledger(service)
    page = await open_credit(chromium, service)
    expected = (
        ("Answer", "-$0.0000125"),
        ("Adjustment", "-$0.001234567"),
        ("Dispute", "-$3.00"),
        ("Refund", "-$2.00"),
        ("Credit from an admin", "+$5.00"),
        ("Payment", "+$20.00"),
    )
    for row, texts in zip(await list_rows(page).all(), expected, strict=True):
        for text in texts:
            await expect(row).to_contain_text(text)
    await expect(page.get_by_text("<b>Counted twice</b>")).to_be_visible()
    await page.get_by_role("link", name="Show the answer").click()
    assert page.url.startswith(f"{service.url}/account/log?id=")
    await expect(page.locator("#drawer")).to_contain_text("Prompt")


async def test_older_entries_are_loaded(
    chromium: Browser, serve: Serve, stripe: StripeFake
) -> None:
    """A button adds the next page until there is none."""
    service = await serve_top_ups(serve, stripe)
    await fill_ledger(service, count=50)
    page = await open_credit(chromium, service)
    await expect(list_rows(page)).to_have_count(50)
    more = page.get_by_role("button", name="Load more")
    await more.click()
    await expect(list_rows(page)).to_have_count(56)
    await expect(more).to_be_hidden()


async def test_a_purchase_works_under_a_path(
    chromium: Browser, serve: Serve, stripe: StripeFake, tmp_path: Path
) -> None:
    """Behind a proxy with a prefix, returning from another site keeps the session."""
    port = find_free_port()
    async with nginx_prefix(f"http://127.0.0.1:{port}", tmp_path) as url:
        service = await serve_top_ups(serve, stripe, port=port, public_url=url)
        key = str((await make_key(service, "alice")).key)
        context = await chromium.new_context(locale="en-US", ignore_https_errors=True)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        await page.goto(f"{url}/account/billing")
        await page.fill("#key", key)
        await page.press("#key", "Enter")
        await page.wait_for_url(f"{url}/account/billing")
        await begin_payment(page, stripe)
        await page.click("#pay")
        await expect(page.get_by_text("The payment has arrived")).to_be_visible()
        await expect(page).to_have_url(f"{url}/account/billing")
        await context.close()


async def test_the_keyboard_suffices(chromium: Browser, serve: Serve, stripe: StripeFake) -> None:
    """Enter in the field of the amount leads to Checkout."""
    service = await serve_top_ups(serve, stripe)
    page = await open_credit(chromium, service)
    await page.get_by_label("Amount in USD").press("Enter")
    await page.wait_for_url(f"{stripe.url}/pay/*")


@pytest.mark.parametrize(
    ("locale", "scheme", "width"),
    [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("ja-JP", "light", PHONE)],
)
async def test_a_filled_page_is_accessible_and_fits(
    chromium: Browser, serve: Serve, stripe: StripeFake, locale: str, scheme: str, width: int
) -> None:
    """With entries, invoices and a notice no violation is reported, and nothing overflows."""
    service = await serve_top_ups(serve, stripe)
    await fill_ledger(service, count=50)
    viewport = {"width": width, "height": 900}
    options: dict[str, Any] = {"locale": locale, "color_scheme": scheme, "viewport": viewport}
    page = await open_credit(chromium, service, query="?payment=cancelled", **options)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()
