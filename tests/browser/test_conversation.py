"""Conversations on the page: follow-up questions, another topic, and links."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Open, Visit
from tests.browser.test_page import ENGLISH, OFF_TOPIC
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake

pytestmark = pytest.mark.slow


def record_questions(page: Page) -> list[dict[str, object]]:
    """The bodies of the questions that a page asks from now on."""
    bodies: list[dict[str, object]] = []
    page.on(
        "request",
        lambda request: (
            bodies.append(request.post_data_json or {})
            if request.url.endswith("/ai/answers")
            else None
        ),
    )
    return bodies


async def test_question_continues_the_conversation(
    fake_visit: Visit, service: Service, fake: ProviderFake
) -> None:
    """The next question is a follow-up of the last answer, as page, request and log say."""
    bodies = record_questions(fake_visit.page)
    await fake_visit.ask("First?")
    thread = fake_visit.page.locator("#thread")
    await expect(thread).to_contain_text("First?")
    await fake_visit.ask("Second?")
    await fake_visit.ask("Third?")

    assert "Follow-up to “First?”" in await fake_visit.text("#current .continues")
    first, second, third = reversed(await service.rows())
    assert "conversation_id" not in bodies[0]
    assert [body["conversation_id"] for body in bodies[1:]] == [first["id"]] * 2
    assert {row["conversation_id"] for row in (first, second, third)} == {first["id"]}
    assert len(fake.calls[-1].body["messages"]) >= 5


async def test_another_topic_begins_a_new_conversation(fake_visit: Visit) -> None:
    """The reader can leave the conversation with one click; examples always do."""
    bodies = record_questions(fake_visit.page)
    await fake_visit.ask("First?")
    await fake_visit.page.click("#leave-thread")
    await expect(fake_visit.page.locator("#thread")).to_be_hidden()
    await fake_visit.ask("Second?")
    assert ["conversation_id" in body for body in bodies] == [False, False]


async def test_refusal_begins_no_conversation(visit: Visit) -> None:
    """After a refused first question there is nothing to follow up."""
    await visit.ask(OFF_TOPIC)
    await expect(visit.page.locator("#thread")).to_be_hidden()
    await visit.ask(ENGLISH)
    await expect(visit.page.locator("#thread")).to_contain_text(ENGLISH)


async def test_link_opens_a_conversation(
    open_page: Open, fake: ProviderFake, service: Service
) -> None:
    """A copied link shows the conversation in another browser, where it can be continued."""
    visit = await open_page(service.url, permissions=["clipboard-read", "clipboard-write"])
    await visit.page.uncheck("#grounded")
    await visit.ask("First?")
    await visit.ask("Second?")
    await visit.page.click("#current .copy-link")
    await expect(visit.page.locator("#current .copy-link")).to_have_text("Copied")
    link = await visit.page.evaluate("navigator.clipboard.readText()")

    other = await open_page(service.url)
    await other.page.goto(link)
    await expect(other.page.locator("#current .question")).to_have_text("Second?")
    await expect(other.page.locator("#earlier-list > details")).to_have_count(1)
    await expect(other.page.locator("#thread")).to_contain_text("First?")
    await other.page.uncheck("#grounded")
    await other.ask("Third?")
    assert len({row["conversation_id"] for row in await service.rows()}) == 1
    assert len(fake.calls) == 3


async def test_link_of_another_user_shows_nothing(open_page: Open, serve: Serve) -> None:
    """A link to a conversation that does not exist, or is not the reader's, says so."""
    visit = await open_page((await serve()).url)
    await visit.page.goto(f"{visit.url}/#c=01890a5d-ac96-774b-bcce-b302099a8057")
    await expect(visit.page.locator("#current .failure")).to_contain_text("404")
