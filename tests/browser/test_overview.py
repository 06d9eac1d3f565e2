"""The overview of admins: its figures are those of the log, to the nano-dollar."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from playwright.async_api import Browser, Page, Route, expect

from service.core.database.tables import request_logs
from service.core.encoding import utc_now
from service.core.pricing import Usage, format_usd
from service.core.records import FAILURES, Outcome, Status, UsageSource
from tests.browser.test_admin_pages import sign_in
from tests.conftest import Serve, Service
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow


def build_rows() -> list[Outcome]:
    """Answers of two users and models in the last days: one of unknown usage, one unpriced."""
    now = utc_now()
    rows = [
        build_outcome(
            build_intent(
                at=now - timedelta(hours=5 * n, minutes=1),
                user_id=("yuki", "m.weber")[n % 2],
                model=("small", "large")[n % 3 == 0],
            ),
            status=Status.COMPLETED if n % 5 else Status.TIMEOUT,
            usage=Usage(prompt_tokens=1000 + n, completion_tokens=100),
            cost_nano_usd=1_000_001 * (n + 1),
            response_time_ms=500 + n,
        )
        for n in range(20)
    ]
    intent = build_intent(at=now - timedelta(hours=1), user_id="yuki", model="small")
    unknown = build_outcome(
        intent,
        status=Status.PROVIDER_ERROR,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        cost_nano_usd=None,
    )
    free = build_intent(at=now - timedelta(hours=2), user_id="lena", model="local")
    return [*rows, unknown, build_outcome(free, cost_nano_usd=None)]


async def open_overview(chromium: Browser, service: Service, query: str = "") -> Page:
    """Open the overview as an admin and wait for the check of its sums."""
    page = await sign_in(chromium, service)
    await page.goto(f"{service.url}/admin{query}")
    await expect(page.locator(".panel .pill")).to_be_visible()
    return page


async def read_tile(page: Page, name: str) -> str:
    """The figure below a name."""
    return await page.locator(".tile", has_text=name).first.locator(".figure").inner_text()


async def test_figures_are_those_of_the_rows(chromium: Browser, serve: Serve) -> None:
    """Answers, errors and the exact cost are the sums of the rows; unknown amounts are separate."""
    service = await serve(auth="keys")
    rows = build_rows()
    await write(service.services.database, rows)
    page = await open_overview(chromium, service, "?period=7d")
    cost = format_usd(sum(row.cost_nano_usd or 0 for row in rows))

    assert await read_tile(page, "Answers") == str(len(rows))
    assert await read_tile(page, "Errors") == str(sum(row.status in FAILURES for row in rows))
    check = page.locator(".panel", has_text="Sum of rows")
    await expect(check.locator(".pill")).to_have_text("Equal")
    assert await check.locator("td:last-child").all_inner_texts() == [f"${cost}"] * 2
    lines = page.locator(".lines strong")
    assert await lines.all_inner_texts() == ["1", "1"]


async def test_breakdown_is_sorted_by_the_service(chromium: Browser, serve: Serve) -> None:
    """Each dimension has its groups; a heading orders them, and an unknown cost is not 0."""
    service = await serve(auth="keys")
    await write(service.services.database, build_rows())
    page = await open_overview(chromium, service, "?by=user_id")
    panel = page.locator(".panel", has_text="Breakdown")

    await expect(panel.locator("tbody tr")).to_have_count(3)
    assert "lena" in await panel.locator("tbody tr").last.inner_text()
    await expect(panel.locator("tbody tr").last.locator("td").nth(8)).to_contain_text("–")
    await panel.get_by_role("button", name="Answers").click()
    await expect(panel.locator('th[aria-sort="descending"]')).to_have_text("Answers")
    await panel.get_by_role("button", name="Model").click()
    await expect(panel.locator("tbody")).to_contain_text("large")
    assert "by=model" in page.url


async def test_each_chart_has_its_values_as_a_table(chromium: Browser, serve: Serve) -> None:
    """The four charts are drawn, and their tables have one row for each bucket, also empty ones."""
    service = await serve(auth="keys")
    await write(service.services.database, build_rows())
    page = await open_overview(chromium, service, "?period=7d&bucket=day")

    await expect(page.locator(".plot canvas")).to_have_count(4)
    for details in await page.locator("details.values").all():
        await details.locator("summary").press("Enter")
        await expect(details.locator("tbody tr")).to_have_count(7)


async def test_period_is_kept_in_the_address(chromium: Browser, serve: Serve) -> None:
    """A chosen period survives a reload; days that are chosen are those of the browser."""
    service = await serve(auth="keys")
    await write(service.services.database, build_rows())
    page = await open_overview(chromium, service)
    await page.get_by_role("button", name="24 hours").click()
    await page.wait_for_url("**period=24h*")
    await page.reload()
    pressed = page.locator('[aria-pressed="true"]', has_text="24 hours")
    await expect(pressed).to_be_visible()
    await page.get_by_role("button", name="Custom").click()
    day = (datetime.now(UTC) - timedelta(days=40)).date().isoformat()
    await page.get_by_label("From", exact=True).fill(day)
    await page.get_by_label("To", exact=True).fill(day)
    await page.wait_for_url(f"**from={day}&to={day}*")
    await expect(page.locator(".panel", has_text="Breakdown")).to_contain_text("No answers")


async def test_differences_are_shown(chromium: Browser, serve: Serve) -> None:
    """If stored sums and rows differ, the page says so and names the remedy."""
    service = await serve(auth="keys")
    await write(service.services.database, build_rows())
    async with service.services.database.transaction() as session:
        changed = sa.update(request_logs).values(cost_nano_usd=request_logs.c.cost_nano_usd + 1)
        await session.execute(changed)
    page = await open_overview(chromium, service)
    panel = page.locator(".panel", has_text="Sum of rows")

    await expect(panel.locator(".pill")).to_have_text("Different")
    await expect(panel).to_contain_text("kotae audit")


async def test_many_rows_are_summed_on_request(chromium: Browser, serve: Serve) -> None:
    """A period with many answers is compared when an admin asks for it."""
    service = await serve(auth="keys")
    await write(service.services.database, build_rows())
    page = await sign_in(chromium, service)

    async def multiply(route: Route) -> None:
        response = await route.fetch()
        body = await response.json()
        for bucket in body["items"]:
            for result in bucket["results"]:
                result["answers"] *= 1000
        await route.fulfill(response=response, json=body)

    await page.route("**/ai/analytics?*", multiply)
    await page.goto(f"{service.url}/admin")
    panel = page.locator(".panel", has_text="Sum of rows")
    await expect(panel).to_contain_text("takes a while")
    await expect(panel.locator(".pill")).to_have_count(0)
    await panel.get_by_role("button", name="Compare now").click()
    await expect(panel.locator(".pill")).to_have_text("Equal")
