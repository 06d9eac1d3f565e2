"""Active content from users, documents and models: it stays text, and nothing is fetched."""

import pytest
from playwright.async_api import Error, Page, expect

from tests.browser.conftest import Open, Visit
from tests.browser.test_documents import ROWS, text_file
from tests.browser.test_page import ENGLISH, PASSAGE, delta, done, script_streams, start
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake

pytestmark = pytest.mark.slow

# Each would change the title of the page, or send a request to another host.
CANARY = (
    "<script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
    "<svg onload=\"document.title='owned'\"></svg>"
    "[link](javascript:document.title='owned') ![image](https://evil.example/canary.png) "
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>"
)
NAMES = ("<script>", "onerror", "javascript:", "https://evil.example/canary.png", "srcdoc")
ACTIVE = "img, svg, script, iframe, object, embed, a, style, link, form, input"


async def expect_harmless(visit: Visit, *places: str) -> None:
    """The canary is text in these places; no element came from it, nothing ran or was fetched."""
    for place in places:
        text = visit.page.locator(place)
        for name in NAMES:
            await expect(text).to_contain_text(name)
        assert await text.locator(ACTIVE).count() == 0, place
    assert await visit.page.title() == "Kotae 答え"
    assert visit.foreign_requests == []
    assert visit.complaints == []


async def open_first(page: Page) -> None:
    """Open the newest document in the drawer."""
    await page.locator(f"{ROWS} .title").first.click()
    await expect(page.locator("#drawer h2")).not_to_be_empty()


async def test_canary_in_a_prompt(fake_visit: Visit) -> None:
    """In the heading, in the follow-up line, and in the list of earlier questions."""
    await fake_visit.ask(CANARY)
    await expect_harmless(fake_visit, "#current .question", "#thread > span")
    await fake_visit.ask("Next?")
    await expect_harmless(fake_visit, "#current .continues", "#earlier-list > details > summary")
    await fake_visit.page.reload()
    await fake_visit.page.locator("#earlier-list > details").last.locator("summary").first.click()
    await expect_harmless(fake_visit, "#earlier-list > details:last-child > summary")


async def test_canary_in_an_answer(fake_visit: Visit, fake: ProviderFake) -> None:
    """In one piece, in small pieces, and from the history."""
    for size in (len(CANARY), 7):
        deltas = [CANARY[begin : begin + size] for begin in range(0, len(CANARY), size)]
        fake.next(Behaviour(deltas=deltas))
        await fake_visit.ask(ENGLISH)
        await expect_harmless(fake_visit, "#current .text")
    await fake_visit.page.reload()
    await fake_visit.page.click("#earlier-list summary")
    await expect(fake_visit.page.locator("#earlier-list .text").first).to_be_visible()
    await expect_harmless(fake_visit, "#earlier-list > details:first-child .text")


async def test_canary_in_a_title(open_page: Open, service: Service) -> None:
    """In the list, the drawer, the note of a deletion, and never in an example question."""
    body = {"title": CANARY, "text": "## A kettle\n\nA kettle is red."}
    assert (await service.client.post("/ai/upload", json=body)).status_code == 201
    visit = await open_page(service.url)
    await open_first(visit.page)
    await expect_harmless(visit, f"{ROWS} .title", "#drawer h2")
    await visit.page.keyboard.press("Escape")
    await expect(visit.page.locator("#examples button")).to_have_count(1)
    assert "script" not in await visit.text("#examples")
    await visit.page.click(f"{ROWS} .delete")
    await expect_harmless(visit, "#documents-note")


async def test_canary_in_a_file_name(open_page: Open, service: Service) -> None:
    """In the list of uploads and of documents. A name has no slashes."""
    name = CANARY.replace("/", "\N{FRACTION SLASH}") + ".txt"
    visit = await open_page(service.url)
    files = [text_file(name, "A kettle."), text_file(f"2 {name}", "")]
    await visit.page.set_input_files("#files", files)
    for place in (f"{ROWS} .title", '#uploads-list [data-state="failed"]'):
        await expect(visit.page.locator(place)).to_contain_text("<script>document.title")
        assert await visit.page.locator(place).locator(ACTIVE).count() == 0
    assert await visit.page.title() == "Kotae 答え"
    assert visit.complaints == []


async def test_canary_in_a_passage(open_page: Open, service: Service) -> None:
    """In a source, its glimpse, the card of its citation, and its document; also when marked."""
    text = f"# Kettles\n\nReturns take thirty days. {CANARY}"
    stored = await service.client.post("/ai/upload", json={"title": "Kettles", "text": text})
    visit = await open_page(service.url)
    passage = PASSAGE | {"document_id": stored.json()["document_id"], "text": text, "title": CANARY}
    answer = done(30, sources=[passage | {"sentence": [11, len(text)]}])
    await script_streams(visit.page, start(context=[passage]) + delta(10, "A month [1].") + answer)
    await visit.ask(ENGLISH)
    await expect_harmless(visit, "#current .source .glimpse", "#current .source .title")
    await visit.page.hover("#current .cite")
    await expect_harmless(visit, "#citation-card .quote", "#citation-card .title")
    await visit.page.click("#current .cite")
    await expect_harmless(visit, "#current .source[open] blockquote")
    await visit.page.click("#current .open-document")
    await expect_harmless(visit, "#drawer .body")


async def test_original_with_active_content_is_not_shown(open_page: Open, serve: Serve) -> None:
    """A page of a user is downloaded, also when its address is opened."""
    service = await serve(originals_bytes_max=1_000_000)
    files = {"files": ("a.html", f"<html><body><p>A kettle.</p>{CANARY}</body></html>".encode())}
    document = (await service.client.post("/ai/upload", files=files)).json()
    visit = await open_page(service.url)
    with pytest.raises(Error, match="Download is starting"):
        await visit.page.goto(f"{service.url}/ai/documents/{document['document_id']}/original")
    assert await visit.page.title() == "Kotae 答え"
    assert visit.foreign_requests == []
