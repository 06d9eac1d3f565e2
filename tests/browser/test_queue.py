"""One question can wait while an answer arrives."""

import asyncio

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Visit
from tests.fakes.provider import Behaviour, ProviderFake

pytestmark = pytest.mark.slow


async def begin_held(visit: Visit, fake: ProviderFake, **behaviour: object) -> asyncio.Event:
    """Ask a question whose answer is held until the event is set."""
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after=1, **behaviour))  # type: ignore[arg-type]
    await visit.begin("First?")
    await visit.wait_state("answering")
    return release


async def test_queued_question_is_asked_next(fake_visit: Visit, fake: ProviderFake) -> None:
    """Enter during an answer queues the question, and it is asked when the answer has ended."""
    release = await begin_held(fake_visit, fake)
    await fake_visit.begin("Second?")
    await expect(fake_visit.page.locator("#queued .question")).to_have_text("Second?")
    assert await fake_visit.page.input_value("#question") == ""
    assert len(fake.calls) == 1

    release.set()
    await expect(fake_visit.page.locator("#current .question")).to_have_text("Second?")
    await fake_visit.wait_state("completed")
    await expect(fake_visit.page.locator("#queued")).to_be_hidden()
    assert len(fake.calls) == 2
    assert await fake_visit.page.locator("#earlier-list > details").count() == 1


async def test_third_question_stays_in_the_box(fake_visit: Visit, fake: ProviderFake) -> None:
    """One question waits; another one is not lost."""
    release = await begin_held(fake_visit, fake)
    await fake_visit.page.fill("#question", "Second?")
    await expect(fake_visit.page.locator("#send")).to_have_text("Ask next")
    await fake_visit.page.click("#send")
    await fake_visit.begin("Third?")
    assert await fake_visit.page.input_value("#question") == "Third?"
    await fake_visit.page.fill("#question", "")
    await fake_visit.page.click("#unqueue")
    assert await fake_visit.page.input_value("#question") == "Second?"
    release.set()
    await fake_visit.wait_state("completed")
    assert len(fake.calls) == 1


async def test_queued_question_returns_after_a_failure(
    fake_visit: Visit, fake: ProviderFake
) -> None:
    """When the answer fails, the waiting question is not asked, and can be edited."""
    release = await begin_held(fake_visit, fake, cut_after=2)
    await fake_visit.begin("Second?")
    release.set()
    await fake_visit.wait_state("failed")
    assert await fake_visit.page.input_value("#question") == "Second?"
    await expect(fake_visit.page.locator("#queued")).to_be_hidden()
    assert len(fake.calls) == 1


async def test_queued_question_is_asked_after_a_stop(fake_visit: Visit, fake: ProviderFake) -> None:
    """Stop ends the current answer only."""
    await begin_held(fake_visit, fake)
    await fake_visit.begin("Second?")
    await fake_visit.page.click("#stop")
    await expect(fake_visit.page.locator("#current .question")).to_have_text("Second?")
    await fake_visit.wait_state("completed")
