"""The log page: filters in the address, load more, live tail, details, exports, keyboard."""

import csv
import io
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Response, expect

from service.core.auth.principals import Role
from service.core.encoding import utc_now
from service.core.records import Passage, Status
from tests.browser.admin_data import ANSWERS, fill
from tests.browser.test_admin_pages import PHONE, open_path, sign_in
from tests.conftest import Serve, Service
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow

ROWS = ".log tbody tr"


async def open_log(
    chromium: Browser, serve: Serve, query: str = "", **options
) -> tuple[Page, Service]:
    """Open the log of a service with answers as an admin."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service, **options)
    await open_path(page, service, f"/admin/log{query}")
    return page, service


def read_query(page: Page) -> dict[str, list[str]]:
    """The query of the page's address."""
    return parse_qs(urlsplit(page.url).query)


async def test_filters_are_in_the_address_and_survive_a_reload(
    chromium: Browser, serve: Serve
) -> None:
    """Chosen filters change rows and address; the address restores them, and so does going back."""
    page, _ = await open_log(chromium, serve)
    await page.select_option("[name=status]", "error")
    await expect(page.locator(ROWS)).to_have_count(4)
    await page.fill("[name=user_id]", "kenji.mori, support-bot")
    await page.press("[name=user_id]", "Enter")
    await expect(page.locator(ROWS)).to_have_count(3)
    query = read_query(page)
    await page.reload()

    await expect(page.locator(ROWS)).to_have_count(3)
    assert query == {"status": ["error"], "user_id": ["kenji.mori", "support-bot"]}
    assert await page.input_value("[name=user_id]") == "kenji.mori, support-bot"
    await page.go_back()
    await expect(page.locator(ROWS)).to_have_count(4)
    await page.get_by_role("button", name="Clear filters").click()
    await expect(page.locator(ROWS)).to_have_count(50)
    assert read_query(page) == {}


async def test_every_filter_is_sent(chromium: Browser, serve: Serve) -> None:
    """Words, model, endpoint, period and response time restrict the rows together."""
    page, _ = await open_log(chromium, serve)
    await page.get_by_text("More filters").click()
    await page.fill("[name=q]", "warranty")
    await page.fill("[name=model]", "claude-sonnet-4-5")
    await page.select_option("[name=endpoint]", "/v1/chat/completions")
    await page.select_option("[name=period]", "-24h")
    await page.fill("[name=min_response_time_ms]", "2000")
    await page.press("[name=min_response_time_ms]", "Enter")
    await page.wait_for_url("**min_response_time_ms=2000**")

    assert read_query(page) == {
        "q": ["warranty"],
        "since": ["-24h"],
        "model": ["claude-sonnet-4-5"],
        "endpoint": ["/v1/chat/completions"],
        "min_response_time_ms": ["2000"],
    }
    expected = sum(n % 3 == 1 and n % 8 == 1 and n % 16 not in {3, 7} for n in range(ANSWERS))
    await expect(page.locator(ROWS)).to_have_count(expected)


async def test_older_rows_are_loaded_on_request(chromium: Browser, serve: Serve) -> None:
    """The button adds the next page, and disappears at the end."""
    page, _ = await open_log(chromium, serve)
    await expect(page.locator(ROWS)).to_have_count(50)
    await page.get_by_role("button", name="Load more").click()

    await expect(page.locator(ROWS)).to_have_count(ANSWERS)
    await expect(page.get_by_role("button", name="Load more")).to_be_hidden()
    await expect(page.get_by_role("status").first).to_have_text(f"{ANSWERS} answers")


async def test_columns_sort_by_the_largest(chromium: Browser, serve: Serve) -> None:
    """A heading orders by its values within an interval; again, the newest rows are first."""
    page, _ = await open_log(chromium, serve)
    await page.get_by_role("button", name="Time taken").click()
    first = page.locator(ROWS).first

    await expect(first).to_contain_text("60.0 s")
    assert read_query(page) == {"order": ["-response_time_ms"], "since": ["-24h"]}
    await expect(page.get_by_role("columnheader", name="Time taken")).to_have_attribute(
        "aria-sort", "descending"
    )
    await expect(page.get_by_role("link", name="CSV")).to_be_hidden()
    await page.get_by_role("button", name="Time taken").click()
    await expect(first).not_to_contain_text("60.0 s")


async def test_new_rows_appear_while_following(chromium: Browser, serve: Serve) -> None:
    """New answers that match are added at the top, unchanged lists are 304; paused, nothing is."""
    page, service = await open_log(chromium, serve, "?status=completed")
    statuses: list[int] = []

    def note(response: Response) -> None:
        if "after=" in response.url:
            statuses.append(response.status)

    page.on("response", note)
    await page.get_by_role("button", name="Follow live").click()
    async with page.expect_response(lambda response: response.status == 304):
        pass
    fresh = build_outcome(build_intent(user_id="dora", prompt="Is anyone there?"))
    other = build_outcome(build_intent(user_id="dora"), status=Status.TIMEOUT)
    await write(service.services.database, [fresh, other])

    await expect(page.locator(ROWS).first).to_contain_text("Is anyone there?")
    await expect(page.locator(ROWS).first).to_contain_text("dora")
    assert await page.locator(ROWS, has_text="dora").count() == 1
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("button", name="Follow live")).to_have_attribute(
        "aria-pressed", "false"
    )
    assert set(statuses) == {200, 304}


async def test_details_show_texts_attempts_and_a_timeline(chromium: Browser, serve: Serve) -> None:
    """The drawer has prompt, answer, both calls with usage and error, and times; axe is content."""
    page, _ = await open_log(chromium, serve)
    await page.locator(ROWS).nth(1).get_by_role("button").click()
    drawer = page.locator("#drawer")
    await expect(drawer.locator("h2")).to_contain_text("How long is the warranty")

    await expect(drawer).to_contain_text("The warranty lasts two years [1].")
    await expect(drawer.locator(".attempts li")).to_have_count(2)
    await expect(drawer.locator(".attempts li").first).to_contain_text("provider_busy")
    await expect(drawer.locator(".attempts li").last).to_contain_text("$0.0029135")
    await expect(drawer.locator(".timeline li").first).to_contain_text("0 ms – 1.11 s")
    await expect(drawer.locator(".timeline li")).to_have_count(4)
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()


async def test_the_open_answer_is_part_of_the_address(chromium: Browser, serve: Serve) -> None:
    """A link opens the answer; closing it with the keyboard returns to the row."""
    page, service = await open_log(chromium, serve)
    await page.locator(ROWS).nth(2).get_by_role("button").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#drawer .attempts")).to_be_visible()
    (answer_id,) = read_query(page)["id"]
    await page.keyboard.press("Escape")
    await expect(page.locator("#drawer")).to_be_hidden()

    assert read_query(page) == {}
    assert await page.evaluate("document.activeElement.closest('tr').rowIndex") == 3
    await open_path(page, service, f"/admin/log?id={answer_id}")
    await expect(page.locator("#drawer")).to_contain_text(answer_id)


async def test_a_source_opens_its_document(chromium: Browser, serve: Serve) -> None:
    """A source opens the document at its sentence; closing that returns to the answer."""
    page, service = await open_log(chromium, serve)
    document = (await (await page.request.get(f"{service.url}/ai/documents")).json())["items"][0]
    text = await (
        await page.request.get(f"{service.url}/ai/documents/{document['document_id']}")
    ).json()
    passage = Passage(1, document["document_id"], "c", document["title"], text["text"][:200])
    outcome = build_outcome(build_intent(user_id="eve", prompt="Sourced?"), sources=[passage])
    await write(service.services.database, [outcome])
    await open_path(page, service, f"/admin/log?id={outcome.intent.id}")
    await page.locator("#drawer .passages button").click()

    await expect(page.locator("#drawer h2")).to_have_text(document["title"])
    await page.keyboard.press("Escape")
    await expect(page.locator("#drawer h2")).to_have_text("Sourced?")
    await page.keyboard.press("Escape")
    await expect(page.locator("#drawer")).to_be_hidden()


async def test_exports_have_the_filters_of_the_page(chromium: Browser, serve: Serve) -> None:
    """The link downloads all rows that match, also those that are not loaded."""
    page, _ = await open_log(chromium, serve, "?user_id=kenji.mori&status=completed")
    async with page.expect_download() as waiting:
        await page.get_by_role("link", name="CSV", exact=True).click()
    download = await waiting.value
    with open(await download.path(), newline="") as file:  # noqa: PTH123 - a small file
        rows = list(csv.DictReader(io.StringIO(file.read())))
    shown = await page.locator(ROWS).count()

    assert download.suggested_filename == "kotae-logs.csv"
    assert {row["user_id"] for row in rows} == {"kenji.mori"}
    assert len(rows) == shown > 10


async def test_a_refused_filter_is_explained(chromium: Browser, serve: Serve) -> None:
    """The service's reason is shown above the table, and goes with the filter."""
    page, _ = await open_log(chromium, serve, "?since=yesterday")
    alert = page.locator(".log [role=alert]")

    await expect(alert).to_contain_text("since")
    await page.get_by_role("button", name="Clear filters").click()
    await expect(alert).to_be_empty()
    await expect(page.locator(ROWS)).to_have_count(50)


async def test_a_chosen_interval_is_of_the_browser(chromium: Browser, serve: Serve) -> None:
    """Times are entered in the time zone of the browser and sent in UTC."""
    page, _ = await open_log(chromium, serve, timezone_id="Asia/Tokyo")
    begin = (utc_now() - timedelta(hours=1)).replace(second=0, microsecond=0)
    await page.select_option("[name=period]", "custom")
    local = begin + timedelta(hours=9)
    await page.fill("[name=from]", local.strftime("%Y-%m-%dT%H:%M"))
    await page.press("[name=from]", "Enter")
    await page.wait_for_url("**since=**")

    (since,) = read_query(page)["since"]
    assert since == begin.strftime("%Y-%m-%dT%H:%M:00.000Z")
    await expect(page.locator(ROWS)).to_have_count(9)


@pytest.mark.parametrize(
    ("locale", "scheme", "width"), [("ja-JP", "dark", 1280), ("en-US", "light", PHONE)]
)
async def test_rows_are_accessible_and_fit(
    chromium: Browser, serve: Serve, locale: str, scheme: str, width: int
) -> None:
    """With rows of every outcome, nothing is reported or wider than the window."""
    viewport = {"width": width, "height": 800}
    page, _ = await open_log(chromium, serve, locale=locale, color_scheme=scheme, viewport=viewport)
    await expect(page.locator(ROWS)).to_have_count(50)

    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    results = await Axe().run(page)
    assert results.response["violations"] == [], results.generate_report()


async def test_users_have_a_log_of_their_own_answers(chromium: Browser, serve: Serve) -> None:
    """Without a filter by user, and without links to pages of admins; an admin sees only theirs."""
    service = await serve(auth="keys", seeded=True)
    await fill(service.services.database)
    page = await sign_in(chromium, service, Role.USER, "kenji.mori")
    await open_path(page, service, "/account/log")
    await expect(page.locator(ROWS)).to_have_count(25)
    await expect(page.locator("[name=user_id]")).to_have_count(0)
    await page.locator(ROWS).first.get_by_role("button").click()
    await expect(page.locator("#drawer .attempts")).to_be_visible()
    assert await page.locator('a[href*="/admin"]').count() == 0
    admin = await sign_in(chromium, service)
    await open_path(admin, service, "/account/log")

    await expect(admin.get_by_text("No answer matches")).to_be_visible()
