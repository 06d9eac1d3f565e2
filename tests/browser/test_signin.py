"""Sign-in with a browser: the key is typed once, and scripts cannot read the session cookie."""

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect
from pydantic import SecretStr

from tests.access import SECRET, make_key
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
    for path in ("/", "/docs", "/signin"):
        await page.goto(f"{service.url}{path}")
        await expect(page.locator("#account")).to_contain_text("alice")
    await page.click("#signout")
    await expect(page.locator("#key")).to_be_visible()
    await page.goto(f"{service.url}/")
    await expect(page).to_have_url(f"{service.url}/signin")


async def open_signin(
    chromium: Browser,
    serve: Serve,
    *,
    locale: str = "en-US",
    scheme: str = "light",
    width: int = 800,
) -> Page:
    """Open the sign-in page of a new service."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    context = await chromium.new_context(
        locale=locale,
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 700},
    )
    page = await context.new_page()
    page.set_default_timeout(10_000)
    await page.goto(f"{service.url}/signin")
    await expect(page.locator("#send")).not_to_be_empty()
    return page


@pytest.mark.parametrize("width", [360, 1280])
async def test_sign_in_is_a_centered_card(chromium: Browser, serve: Serve, width: int) -> None:
    """The input fills the card, which is centered and at most 26 rem wide, without scrolling."""
    page = await open_signin(chromium, serve, width=width)
    card, field, button = [
        await page.locator(selector).bounding_box() for selector in (".card", ".field", "#send")
    ]
    assert card
    assert field
    assert button
    assert abs(card["x"] + card["width"] / 2 - width / 2) <= 1
    assert card["width"] <= 26 * 16
    assert field["width"] == button["width"] > card["width"] * 0.8
    assert await page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("locale", "scheme"), [("en-US", "light"), ("ja-JP", "dark")])
async def test_wrong_key_is_marked(
    chromium: Browser, serve: Serve, locale: str, scheme: str
) -> None:
    """A wrong key is marked in the color of errors until it is changed; axe reports nothing."""
    page = await open_signin(chromium, serve, locale=locale, scheme=scheme)
    color = "getComputedStyle(document.getElementById('note')).color"
    before = await page.evaluate(color)
    await page.fill("#key", "kt_wrong")
    await page.press("#key", "Enter")
    await expect(page.locator("#note[data-bad]")).to_be_visible()
    assert await page.evaluate(color) != before
    assert await page.get_attribute("#key", "aria-invalid") == "true"
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()
    await page.fill("#key", "kt_another")
    assert await page.evaluate(color) == before


@pytest.mark.parametrize(("locale", "scheme"), [("en-US", "dark"), ("ja-JP", "light")])
async def test_sign_in_explains_where_keys_come_from(
    chromium: Browser, serve: Serve, locale: str, scheme: str
) -> None:
    """The help opens with the keyboard, names the command, and axe reports nothing."""
    page = await open_signin(chromium, serve, locale=locale, scheme=scheme, width=360)
    await page.press(".help summary", "Enter")
    await expect(page.locator(".help pre")).to_have_text("kotae keys create --user NAME")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()


async def test_sign_in_names_the_page_to_return_to(chromium: Browser, serve: Serve) -> None:
    """The page that was asked for is named, without its query; the main page is not."""
    page = await open_signin(chromium, serve)
    await expect(page.locator("#destination")).to_be_hidden()
    await page.goto(page.url.replace("/signin", "/admin/log?q=secret"))
    await expect(page.locator("#destination")).to_have_text("to continue to /admin/log")


@pytest.mark.parametrize(
    ("status", "reason"), [(503, "busy"), (429, "busy"), (403, "refused"), (401, "not valid")]
)
async def test_failures_of_the_sign_in_have_reasons(
    chromium: Browser, serve: Serve, status: int, reason: str
) -> None:
    """Each failure has its explanation, and the button can be used again."""
    page = await open_signin(chromium, serve)
    await page.route(
        "**/auth/session", lambda route: route.fulfill(status=status, json={"status": status})
    )
    await page.fill("#key", "kt_key")
    await page.press("#key", "Enter")
    await expect(page.locator("#note[data-bad]")).to_contain_text(reason)
    await expect(page.locator("#send")).to_be_enabled()


async def test_an_unreachable_service_is_explained(chromium: Browser, serve: Serve) -> None:
    """Without a connection the note says so."""
    page = await open_signin(chromium, serve)
    await page.route("**/auth/session", lambda route: route.abort())
    await page.fill("#key", "kt_key")
    await page.press("#key", "Enter")
    await expect(page.locator("#note[data-bad]")).to_contain_text("cannot be reached")


async def test_sign_in_page_has_the_switches_and_shows_the_key(
    chromium: Browser, serve: Serve
) -> None:
    """Language and theme can be switched before the sign-in, and the key can be read."""
    page = await open_signin(chromium, serve)
    await page.click("#language")
    assert await page.inner_text("#send") == "サインイン"
    await page.click("#theme")
    assert await page.get_attribute("html", "data-theme") == "dark"
    await page.click("#reveal")
    assert await page.get_attribute("#key", "type") == "text"
    await page.reload()
    await expect(page.locator("#send")).to_have_text("サインイン")


async def test_open_mode_shows_no_account(chromium: Browser, serve: Serve) -> None:
    """Without authentication there is no name and nothing to sign out of."""
    service = await serve()
    page = await chromium.new_page()
    async with page.expect_response("**/auth/session"):
        await page.goto(f"{service.url}/")
    await expect(page.locator("#documents-empty")).to_be_visible()
    assert await page.locator("#signout").count() == 0
