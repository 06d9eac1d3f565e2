"""The people page: users, keys, limits, plans, erasure; each action and its refusal."""

import re
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Page, expect

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP
from tests.browser.admin_data import USERS, fill
from tests.browser.test_admin_pages import PHONE, open_path, sign_in
from tests.conftest import Serve, Service, http_client

pytestmark = pytest.mark.slow

USER = "support-bot"


async def open_people(chromium: Browser, serve: Serve, **options) -> tuple[Page, Service]:
    """Open the people page of a service with users as an admin."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service, **options)
    await open_path(page, service, "/admin/people")
    return page, service


async def open_user(page: Page, user: str = USER) -> Locator:
    """Open the details of a user."""
    await page.locator(".people .open", has_text=user).click()
    drawer = page.locator("#drawer")
    await expect(drawer.locator(".person-head")).to_be_visible()
    return drawer


async def read_user(service: Service, user: str = USER) -> store.User:
    """The settings of a user in the database."""
    async with service.services.database.read_session() as session:
        return await store.get_user(session, user)


def dialog(page: Page) -> Locator:
    """The dialog in front."""
    return page.locator("dialog.dialog").last


async def press(place: Locator, name: str) -> None:
    """Press the button with this name."""
    await place.get_by_role("button", name=name, exact=True).click()


async def test_users_are_listed_with_state_plan_and_cost(chromium: Browser, serve: Serve) -> None:
    """Each user has state, plan or limits, and answers and cost of the month, also unknown ones."""
    page, service = await open_people(chromium, serve)
    rows = page.locator(".people tbody tr")
    await expect(rows).to_have_count(len(USERS) + 1)
    costs = await (
        await page.request.get(f"{service.url}/ai/analytics?metrics=cost&group_by=user_id")
    ).json()
    cost = {row["user_id"]: row["cost"] for row in costs["items"][0]["results"]}

    await expect(rows.filter(has_text="bob.smith")).to_contain_text("Disabled")
    await expect(rows.filter(has_text="sakura.tanaka")).to_contain_text("team")
    await expect(rows.filter(has_text=USER)).to_contain_text("200,000 tokens/day")
    await expect(rows.filter(has_text=USER)).to_contain_text(f"${float(cost[USER]):.2f}"[:4])
    await expect(rows.filter(has_text="kenji.mori")).to_contain_text("of unknown cost")


async def test_search_finds_users_by_a_part_of_their_name(chromium: Browser, serve: Serve) -> None:
    """The list follows the search field, and says so if there is no match."""
    page, _ = await open_people(chromium, serve)
    await page.get_by_label("Search").fill("MORI")
    await expect(page.locator(".people tbody tr")).to_have_count(1)
    await page.get_by_label("Search").fill("nobody")
    await expect(page.get_by_text("No user matches")).to_be_visible()


async def test_a_key_is_created_and_shown_once(chromium: Browser, serve: Serve) -> None:
    """The key of the dialog works, can be copied, and is nowhere on the page afterwards."""
    page, service = await open_people(chromium, serve)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    drawer = await open_user(page)
    await press(drawer, "New key")
    await dialog(page).get_by_label("Label").fill("phone")
    await dialog(page).get_by_label("Keys").uncheck()
    await press(dialog(page), "Create")
    secret = await page.locator(".secret").inner_text()
    await press(dialog(page), "Copy")
    await expect(dialog(page).get_by_text("Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == secret
    await press(dialog(page), "I have stored it")
    await expect(drawer.locator(".key-table tbody tr")).to_have_count(4)

    async with http_client(service.url, headers={"Authorization": f"Bearer {secret}"}) as client:
        assert (await client.get("/ai/documents")).status_code == 200
        assert (await client.get("/ai/keys")).status_code == 403
    assert secret not in await page.content()


async def test_a_new_user_is_created_with_a_key(chromium: Browser, serve: Serve) -> None:
    """The button above the list asks for the name of the user, who is listed afterwards."""
    page, _ = await open_people(chromium, serve)
    await press(page.locator(".people"), "New key")
    await dialog(page).locator("[name=user]").fill("new.colleague")
    await press(dialog(page), "Create")
    await expect(page.locator(".secret")).to_have_text(re.compile("^kt_"))
    await page.keyboard.press("Escape")

    await expect(page.locator(".people .open", has_text="new.colleague")).to_be_visible()


async def test_a_key_is_rotated_with_a_grace_period(chromium: Browser, serve: Serve) -> None:
    """The new key is shown, the old one stays valid for the chosen time."""
    page, _ = await open_people(chromium, serve)
    drawer = await open_user(page)
    await drawer.locator("tr", has_text="laptop").get_by_role("button", name="Rotate").click()
    await dialog(page).get_by_label("The old key stays valid for").select_option("1 week")
    await press(dialog(page), "Rotate")
    await expect(page.locator(".secret")).to_have_text(re.compile("^kt_"))
    await press(dialog(page), "I have stored it")

    rows = drawer.locator("tr", has_text="laptop")
    await expect(rows).to_have_count(2)
    await expect(rows.last).to_contain_text("until")
    await expect(rows.last.get_by_role("button", name="Rotate")).to_have_count(0)


async def test_a_key_is_revoked_after_confirmation(chromium: Browser, serve: Serve) -> None:
    """Cancelling changes nothing; confirming revokes the key."""
    page, _ = await open_people(chromium, serve)
    drawer = await open_user(page)
    row = drawer.locator("tr", has_text="laptop")
    await row.get_by_role("button", name="Revoke").click()
    await press(dialog(page), "Cancel")
    await expect(row).to_contain_text("Active")
    await row.get_by_role("button", name="Revoke").click()
    await expect(dialog(page)).to_contain_text("cannot be undone")
    await press(dialog(page), "Revoke")

    await expect(row).to_contain_text("Revoked")


async def test_a_user_is_disabled_and_enabled(chromium: Browser, serve: Serve) -> None:
    """Disabling asks for confirmation; the state is in the drawer and in the list."""
    page, service = await open_people(chromium, serve)
    drawer = await open_user(page)
    await press(drawer, "Disable")
    await press(dialog(page), "Disable")
    await expect(drawer.locator(".person-head")).to_contain_text("Disabled")
    assert (await read_user(service)).disabled
    await press(drawer, "Enable")
    await expect(drawer.locator(".person-head")).to_contain_text("Active")

    assert not (await read_user(service)).disabled
    await expect(page.locator(".people tr", has_text=USER)).to_contain_text("Active")


async def test_plan_and_limits_of_a_user_are_changed(chromium: Browser, serve: Serve) -> None:
    """A plan replaces individual limits, and the other way round; money stays exact."""
    page, service = await open_people(chromium, serve)
    drawer = await open_user(page)
    limits = drawer.locator("section", has_text="Plan and limits")
    await press(limits, "Change")
    await dialog(page).get_by_label("Plan or limits").select_option("team")
    await press(dialog(page), "Save")
    await expect(limits).to_contain_text("Plan team")
    assert (await read_user(service)).plan == "team"
    await press(limits, "Change")
    await dialog(page).get_by_label("Plan or limits").select_option("Individual limits")
    await dialog(page).get_by_label("US dollars per day").fill("0.123456789")
    await dialog(page).get_by_label("Answers at a time").fill("3")
    await press(dialog(page), "Save")
    await expect(limits).to_contain_text("3 at a time")

    user = await read_user(service)
    assert user.limits is not None
    assert (user.plan, user.limits.cost_nano_usd_per_day) == (None, 123_456_789)


async def test_plans_are_created_changed_and_deleted(chromium: Browser, serve: Serve) -> None:
    """The panel of plans follows each change; deleting asks for confirmation."""
    page, _ = await open_people(chromium, serve)
    plans = page.locator(".panel", has_text="New plan")
    await press(plans, "New plan")
    await dialog(page).get_by_label("Name").fill("trial")
    await dialog(page).get_by_label("Tokens per day").fill("1000")
    await press(dialog(page), "Save")
    row = plans.locator("tbody tr", has_text="trial")
    await expect(row).to_contain_text("1,000 tokens/day")
    await row.get_by_role("button", name="Change").click()
    await dialog(page).get_by_label("Tokens per day").fill("2000")
    await press(dialog(page), "Save")
    await expect(row).to_contain_text("2,000 tokens/day")
    await row.get_by_role("button", name="Delete").click()
    await press(dialog(page), "Delete")

    await expect(row).to_have_count(0)


async def test_texts_are_erased_after_typing_the_name(chromium: Browser, serve: Serve) -> None:
    """Another name is refused; the right one erases, and the number of answers is shown."""
    page, service = await open_people(chromium, serve)
    drawer = await open_user(page)
    await press(drawer, "Erase texts")
    await dialog(page).get_by_role("textbox").fill("support")
    await press(dialog(page), "Erase texts")
    await expect(dialog(page).get_by_role("alert")).to_have_text("This is not the name of the user")
    await dialog(page).get_by_role("textbox").fill(USER)
    await press(dialog(page), "Erase texts")

    await expect(drawer.locator(".erased")).to_have_text(re.compile("^Texts of 26 answers"))
    rows = await (await page.request.get(f"{service.url}/ai/logs?user_id={USER}")).json()
    assert {row["prompt"] for row in rows["items"]} == {""}


async def test_refusals_are_shown_where_they_occurred(chromium: Browser, serve: Serve) -> None:
    """A plan that was deleted meanwhile: the form stays open with the service's reason."""
    page, service = await open_people(chromium, serve)
    drawer = await open_user(page)
    await press(drawer.locator("section", has_text="Plan and limits"), "Change")
    await store.delete_plan(service.services.database, BOOTSTRAP, "team")
    await dialog(page).get_by_label("Plan or limits").select_option("team")
    await press(dialog(page), "Save")

    await expect(dialog(page).get_by_role("alert")).to_contain_text("no plan has this name")
    await expect(dialog(page)).to_be_visible()


async def test_links_lead_to_answers_and_audit_log(chromium: Browser, serve: Serve) -> None:
    """The drawer links to the user's rows; an address with a user opens the drawer."""
    page, service = await open_people(chromium, serve)
    await open_path(page, service, f"/admin/people?user={USER}")
    drawer = page.locator("#drawer")
    await drawer.get_by_role("link", name="All answers").click()
    await page.wait_for_url(f"**/admin/log?user_id={USER}")
    await expect(page.locator(".log tbody tr").first).to_contain_text(USER)
    await open_path(page, service, f"/admin/people?user={USER}")
    await drawer.get_by_role("link", name="Audit log").click()
    await page.wait_for_url(f"**/admin/audit-log?user_id={USER}")
    await expect(page.locator(".audit tbody tr")).to_have_count(5)  # one is that of reading the log


async def open_detail(page: Page) -> None:
    """Open the details of a user."""
    await open_user(page)


async def open_key_form(page: Page) -> None:
    """Open the form of a new key."""
    await press(await open_user(page), "New key")


@pytest.mark.parametrize("step", [open_detail, open_key_form])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", PHONE)])
async def test_drawer_and_forms_are_accessible_and_fit(
    chromium: Browser,
    serve: Serve,
    step: Callable[[Page], Awaitable[None]],
    scheme: str,
    width: int,
) -> None:
    """With users, on desktop and phone: nothing is reported or wider than the window."""
    page, _ = await open_people(
        chromium, serve, color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await step(page)
    await page.wait_for_load_state("networkidle")

    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    wider = "e => e.scrollWidth - e.clientWidth"
    assert await page.locator("#drawer .body").evaluate(wider) <= 0
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()
    assert complaints == []


async def test_an_action_is_done_with_the_keyboard(chromium: Browser, serve: Serve) -> None:
    """From the row to a revoked key without a pointer; the focus returns to the row."""
    page, _ = await open_people(chromium, serve)
    await page.locator(".people .open", has_text=USER).focus()
    await page.keyboard.press("Enter")
    drawer = page.locator("#drawer")
    revoke = drawer.locator("tr", has_text="laptop").get_by_role("button", name="Revoke")
    await revoke.focus()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(drawer.locator("tr", has_text="laptop")).to_contain_text("Revoked")
    await page.keyboard.press("Escape")

    await expect(drawer).to_be_hidden()
    assert httpx2.URL(page.url).query == b""
