"""All pages of admins and users: languages, themes, phones, accessibility, contrast."""

import re
from datetime import datetime
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from service.api.pages import PAGES
from service.core.auth.principals import Role
from tests.access import make_key
from tests.browser.admin_data import fill
from tests.conftest import Serve, Service

pytestmark = pytest.mark.slow

PHONE = 390
BUTTONS = "button:visible:enabled, a:visible:not(.skip)"
CONTENT_BUTTONS = "main button:visible:enabled, main a:visible"  # without those of all pages
BUTTONS_MAX = 40  # of a page: rows of tables repeat theirs
SET_THEME = "theme => { document.documentElement.dataset.theme = theme }"
# Contrast of text and background by WCAG 2.2, for the first opaque background behind each button.
CONTRASTS = """async () => {
  const parse = (color) => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (parse(color)[3] === 255) return color;
    }
    return "white";
  };
  return (element) => {
    const colors = [getComputedStyle(element).color, behind(element)];
    const [text, back] = colors.map((color) => luminance(parse(color)));
    return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
  };
}"""


async def sign_in(
    chromium: Browser,
    service: Service,
    role: Role = Role.ADMIN,
    user: str = "aiko",
    *,
    expires_at: datetime | None = None,
    **options: Any,
) -> Page:
    """Open a browser profile with the session of a user, whose key may expire."""
    key = str((await make_key(service, user, role, expires_at=expires_at)).key)
    context = await chromium.new_context(**{"locale": "en-US", **options})
    context.set_default_timeout(10_000)
    headers = {"Authorization": f"Bearer {key}", "Origin": service.url}
    response = await context.request.post(f"{service.url}/auth/session", headers=headers)
    assert response.status == 200
    return await context.new_page()


async def open_path(page: Page, service: Service, path: str) -> None:
    """Open a page and wait until its requests have ended."""
    await page.goto(f"{service.url}{path}")
    await page.wait_for_load_state("networkidle")
    await expect(page.locator("nav.pages a").first).to_be_visible()


@pytest.mark.parametrize(
    ("locale", "scheme", "width"),
    [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("ja-JP", "light", PHONE)],
)
async def test_pages_are_accessible_and_fit(
    chromium: Browser, serve: Serve, locale: str, scheme: str, width: int
) -> None:
    """No violation is reported, no page is wider than the window, and no message appears."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(
        chromium,
        service,
        locale=locale,
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for path in PAGES:
        await open_path(page, service, path)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
        results = await Axe().run(page)
        assert results.response["violations"] == [], (path, results.generate_report())
        assert complaints == [], path


async def test_pages_name_user_and_role(chromium: Browser, serve: Serve) -> None:
    """Each page shows user and role, and marks itself in the navigation; the user can sign out."""
    service = await serve(auth="keys")
    page = await sign_in(chromium, service)
    for path in PAGES:
        await open_path(page, service, path)
        await expect(page.locator("#account")).to_contain_text("aiko")
        await expect(page.locator("#account .role")).to_have_text("Admin")
        current = page.locator('nav [aria-current="page"]')
        assert await current.get_attribute("href") == f"{service.url}{path}"
    await page.click("#signout")
    await page.wait_for_url(f"{service.url}/signin")


async def test_pages_follow_a_change_of_the_language(chromium: Browser, serve: Serve) -> None:
    """The switch rewrites heading, title, and all texts; switching back restores them."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service)
    translated = "[...document.querySelectorAll('[data-text]')].map((node) => node.textContent)"
    for path in PAGES:
        await open_path(page, service, path)
        english, texts = await page.title(), await page.evaluate(translated)
        await page.click("#language")
        assert await page.title() != english
        await page.click("#language")
        assert await page.title() == english
        if path != "/admin/system":  # refreshed meanwhile
            assert await page.evaluate(translated) == texts


async def test_buttons_under_the_pointer_keep_their_contrast(
    chromium: Browser, serve: Serve
) -> None:
    """Every button and link has a contrast of at least 4.5 under the pointer, light and dark."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service, reduced_motion="reduce")
    for path in PAGES:
        await open_path(page, service, path)
        for theme in ("light", "dark"):
            await page.evaluate(SET_THEME, theme)
            buttons = BUTTONS if path == "/admin" else CONTENT_BUTTONS
            for button in (await page.locator(buttons).all())[:BUTTONS_MAX]:
                await button.hover()
                contrast = await button.evaluate(f"async (node) => (await ({CONTRASTS})())(node)")
                assert contrast >= 4.5, (path, theme, await button.inner_text(), contrast)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_buttons_of_dialogs_keep_their_contrast(
    chromium: Browser, serve: Serve, theme: str
) -> None:
    """So do the buttons of a form, and of a confirmation; axe reports nothing for either."""
    service = await serve(auth="keys", seeded=True)
    page = await sign_in(chromium, service, reduced_motion="reduce")
    for path, opener in (("/account", "New key"), ("/admin/documents", "Delete")):
        await open_path(page, service, path)
        await page.evaluate(SET_THEME, theme)
        await page.get_by_role("button", name=opener).first.click()
        for button in await page.locator("dialog[open] button").all():
            await button.hover()
            contrast = await button.evaluate(f"async (node) => (await ({CONTRASTS})())(node)")
            assert contrast >= 4.5, (path, await button.inner_text(), contrast)
        results = await Axe().run(page)
        assert results.response["violations"] == [], results.generate_report()


async def test_texts_of_the_pages_exist_in_both_languages(chromium: Browser, serve: Serve) -> None:
    """Every text of each page exists in both languages, with the same placeholders."""
    service = await serve(auth="keys")
    page = await sign_in(chromium, service)
    for path in PAGES:
        await open_path(page, service, path)
        root = f"{service.url}/web/text.js"
        texts = await page.evaluate(f"import('{root}').then(({{ TEXTS }}) => TEXTS)")
        gaps = {
            language: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in words.items()}
            for language, words in texts.items()
        }
        assert gaps["en"] == gaps["ja"], path


async def test_users_see_that_a_page_is_for_admins(chromium: Browser, serve: Serve) -> None:
    """A user gets an explanation on pages of admins, and no links to them."""
    service = await serve(auth="keys")
    page = await sign_in(chromium, service, Role.USER, "alice")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for path in (path for path in PAGES if path.startswith("/admin")):
        await open_path(page, service, path)
        await expect(page.locator("main")).to_contain_text("for administrators")
    assert await page.locator('a[href*="/admin"]').count() == 0
    assert [url for url in requests if "/ai/" in url] == []


async def test_sign_in_returns_to_the_page(chromium: Browser, serve: Serve) -> None:
    """Without a session a page leads to the sign-in, which returns to it with its query."""
    service = await serve(auth="keys")
    key = str((await make_key(service, "aiko", Role.ADMIN)).key)
    page = await (await chromium.new_context(locale="en-US")).new_page()
    await page.goto(f"{service.url}/admin/system?a=1")
    await page.fill("#key", key)
    await page.press("#key", "Enter")
    await page.wait_for_url(f"{service.url}/admin/system?a=1")


@pytest.mark.parametrize("target", ["https://example.com/", "//example.com", "javascript:alert(1)"])
async def test_sign_in_returns_to_no_other_site(
    chromium: Browser, serve: Serve, target: str
) -> None:
    """An address of another site is not a page to return to."""
    service = await serve(auth="keys")
    key = str((await make_key(service, "alice")).key)
    page = await (await chromium.new_context(locale="en-US")).new_page()
    await page.goto(f"{service.url}/signin?next={target}")
    await page.fill("#key", key)
    await page.press("#key", "Enter")
    await page.wait_for_url(f"{service.url}/")


async def test_main_page_links_to_the_pages(chromium: Browser, serve: Serve) -> None:
    """The main page shows role and links: administration for admins, the account for everyone."""
    service = await serve(auth="keys")
    for role, links in ((Role.ADMIN, ["/admin", "/account"]), (Role.USER, ["/account"])):
        page = await sign_in(chromium, service, role, f"a-{role}")
        await page.goto(f"{service.url}/")
        await expect(page.locator("#account .role")).to_be_visible()
        hrefs = await page.locator("#account a").evaluate_all("links => links.map((a) => a.href)")
        assert hrefs == [f"{service.url}{link}" for link in links]


async def test_skip_link_moves_the_focus_to_the_content(chromium: Browser, serve: Serve) -> None:
    """With the keyboard, the first stop skips header and navigation."""
    service = await serve(auth="keys")
    page = await sign_in(chromium, service)
    await open_path(page, service, "/admin/system")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"


async def test_open_mode_needs_no_session(chromium: Browser, serve: Serve) -> None:
    """Without authentication everyone is an admin, with nothing to sign out of."""
    service = await serve()
    page = await (await chromium.new_context(locale="en-US")).new_page()
    for path in PAGES:
        await open_path(page, service, path)
        await expect(page.locator("main")).not_to_contain_text("for administrators")
        assert await page.locator("#signout").count() == 0
