"""The list of documents: uploads of many files, search, sorting, deletion with undo, the drawer."""

import asyncio
import io
import zipfile
from collections.abc import Iterable
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Open, Visit
from tests.browser.test_page import ENGLISH, PASSAGE, delta, done, script_streams, start
from tests.conftest import Serve, Service
from tests.fakes.files import build_pdf

pytestmark = pytest.mark.slow

ROWS = "#documents-list li"


def text_file(name: str, text: str) -> Any:
    """A file for an input."""
    return {"name": name, "mimeType": "text/plain", "buffer": text.encode()}


async def upload(service: Service, titles: Iterable[str]) -> None:
    """Store documents, each with a text of its own; the last is the newest and the longest."""
    for n, title in enumerate(titles, 1):
        body = {"title": title, "text": f"{title} is document {n}. " * n}
        assert (await service.client.post("/ai/upload", json=body)).status_code == 201


async def list_titles(service: Service) -> list[str]:
    """The titles of all documents, according to the service."""
    page = (await service.client.get("/ai/documents", params={"limit": 200})).json()
    return [item["title"] for item in page["items"]]


async def count_uploads(page: Page) -> None:
    """Count in the page how many uploads there are, `sent`, and at the same time, `parallel`."""
    await page.evaluate(
        """() => {
          let open = 0;
          window.sent = window.parallel = 0;
          const { send } = XMLHttpRequest.prototype;
          XMLHttpRequest.prototype.send = function (body) {
            // Before `load`, at which the page sends the next.
            this.addEventListener("readystatechange", () => (open -= this.readyState === 4));
            sent += 1;
            parallel = Math.max(parallel, (open += 1));
            return send.call(this, body);
          };
        }"""
    )


async def test_two_hundred_files_are_uploaded_at_once(open_page: Open, service: Service) -> None:
    """One request per file, four at a time, each with a row; those that are no text fail alone."""
    visit = await open_page(service.url)
    await count_uploads(visit.page)
    files = [text_file(f"note {n}.txt", f"Note {n} is about kettles.") for n in range(197)]
    for n in (5, 100):
        picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0"
        files.insert(n, {"name": f"photo {n}.png", "mimeType": "image/png", "buffer": picture})
    files.append(text_file("the same.txt", "Note 0 is about kettles."))

    await visit.page.set_input_files("#files", files)

    note = visit.page.locator("#documents-note")
    await expect(note).to_have_text("Not added: 2. Added: 197.", timeout=60_000)
    rows = visit.page.locator("#uploads-list li")
    assert await rows.count() == 200
    failed = visit.page.locator('#uploads-list [data-state="failed"]')
    assert await failed.locator(".title").all_inner_texts() == ["photo 5.png", "photo 100.png"]
    assert "PNG image" in await failed.first.locator(".meta").inner_text()
    await expect(failed.locator(".retry").first).to_be_hidden()  # it would be refused again
    assert await visit.page.locator('#uploads-list [data-state="known"]').count() == 1
    assert len(await list_titles(service)) == 197
    assert await visit.text("#documents-count") == "197"
    assert await visit.page.evaluate("[sent, parallel]") == [200, 4]
    await visit.page.click("#uploads-clear")
    await expect(visit.page.locator("#uploads")).to_be_hidden()


async def test_upload_waits_while_the_service_is_busy(open_page: Open, service: Service) -> None:
    """A 503 with Retry-After is repeated without a click."""
    visit = await open_page(service.url)
    refusals = 2

    async def refuse(route: Route) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals < 0:
            await route.fallback()
        else:
            await route.fulfill(status=503, headers={"Retry-After": "1"}, json={"title": "Busy"})

    await visit.page.route("**/ai/upload*", refuse)
    await visit.page.set_input_files("#files", [text_file("a.txt", "A kettle.")])
    await visit.page.locator(ROWS).wait_for()
    await expect(visit.page.locator("#documents-note")).to_contain_text("Added: 1")


async def test_failed_upload_is_repeated_with_a_click(open_page: Open, service: Service) -> None:
    """A file that failed shows why, and Retry repeats it and no other."""
    visit = await open_page(service.url)
    await count_uploads(visit.page)

    async def fail(route: Route) -> None:
        if b"b.txt" in (route.request.post_data_buffer or b""):
            await route.fulfill(status=500, json={"title": "Broken", "detail": "try again"})
        else:
            await route.fallback()

    await visit.page.route("**/ai/upload*", fail)
    files = [text_file("a.txt", "A kettle."), text_file("b.txt", "A teapot.")]
    await visit.page.set_input_files("#files", files)
    row = visit.page.locator("#uploads-list li", has_text="b.txt")
    await expect(row.locator(".meta")).to_have_text("try again")
    await visit.page.locator('#uploads-list [data-state="added"]').wait_for()
    assert await list_titles(service) == ["a.txt"]

    await visit.page.unroute("**/ai/upload*")
    await row.locator(".retry").click()
    await expect(visit.page.locator(ROWS)).to_have_count(2)
    await expect(visit.page.locator("#documents-note")).not_to_have_attribute("data-bad", "")
    assert await visit.page.evaluate("sent") == 3


async def test_archive_has_a_result_for_its_files(open_page: Open, service: Service) -> None:
    """Of a zip archive what can be read is added, and what failed is named."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("deep/a.txt", "A kettle.")
        archive.writestr("deep/b.md", "# Teapots\n\nA teapot.")
        archive.writestr("photo.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0")
    visit = await open_page(service.url)
    data = {"name": "all.zip", "mimeType": "application/zip", "buffer": buffer.getvalue()}
    await visit.page.set_input_files("#files", data)  # type: ignore[arg-type]  # a file
    await expect(visit.page.locator(ROWS)).to_have_count(2)
    outcome = visit.page.locator("#uploads-list .meta")
    await expect(outcome).to_contain_text("Added: 2. Not added: 1")
    assert "photo.png" in await outcome.inner_text()


async def test_pages_of_a_document_are_numbered(open_page: Open, service: Service) -> None:
    """A source names its page, and the drawer shows where pages begin."""
    pdf = build_pdf(["Kettles boil water.", "Teapots are made of iron.", "Cups are small."])
    files = [("files", ("manual.pdf", pdf))]
    assert (await service.client.post("/ai/upload", files=files)).status_code == 201
    visit = await open_page(service.url)
    await visit.page.click(f"{ROWS} .title")
    breaks = visit.page.locator("#drawer .page-break")
    await expect(breaks).to_have_text(["p. 2", "p. 3"])
    await visit.page.keyboard.press("Escape")
    passage = PASSAGE | {"page": 2}
    answer = done(30, sources=[passage])
    await script_streams(visit.page, start(context=[passage]) + delta(10, "Iron [1].") + answer)
    await visit.ask(ENGLISH)
    assert await visit.text("#current .source .page") == "p. 2"


async def test_folders_are_dropped_with_their_files(visit: Visit) -> None:
    """The files of a dropped folder and its folders are found; hidden ones are left out."""
    names = await visit.page.evaluate(
        """async () => {
          const { listDropped } = await import("/web/uploads.js");
          const file = (name) => ({ name, isFile: true, file: (done) => done(new File([], name)) });
          const folder = (name, entries) => ({
            name, isDirectory: true,
            createReader() {
              const batches = [entries.slice(0, 1), entries.slice(1)]; // read in parts
              return { readEntries: (done) => done(batches.shift() ?? []) };
            },
          });
          const root = folder("docs", [
            file("a.txt"), file(".hidden"), folder("deep", [file("b.md"), file("c.md")]),
          ]);
          const items = [root, file("d.txt")].map((entry) => ({ webkitGetAsEntry: () => entry }));
          return (await listDropped({ items, files: [] })).map(({ name }) => name);
        }"""
    )
    assert names == ["a.txt", "b.md", "c.md", "d.txt"]


async def test_documents_are_searched_and_sorted(open_page: Open, service: Service) -> None:
    """Search and order apply to all documents, also to those that were not listed yet."""
    await upload(service, [f"Kettle {n:02}" for n in range(1, 61)] + ["Apple pie"])
    visit = await open_page(service.url)
    titles = visit.page.locator(f"{ROWS} .title")
    await expect(titles).to_have_count(50)
    assert await titles.first.inner_text() == "Apple pie"

    await visit.page.fill("#documents-search", "kettle 03")
    await expect(titles).to_have_text(["Kettle 03"])
    await visit.page.fill("#documents-search", "teapot")
    await expect(visit.page.locator("#documents-none")).to_be_visible()
    await visit.page.fill("#documents-search", "")
    await visit.page.select_option("#documents-sort", "title")
    await expect(titles.nth(1)).to_have_text("Kettle 01")
    await visit.page.select_option("#documents-sort", "largest")
    await expect(titles.nth(1)).to_have_text("Kettle 60")
    await visit.page.click("#documents-more")
    await expect(titles).to_have_count(61)


async def test_arrow_keys_lead_through_the_list(open_page: Open, service: Service) -> None:
    """The list has the tab stops of one row; arrow keys move to the same control of the others."""
    await upload(service, ["One", "Two", "Three"])
    visit = await open_page(service.url)
    await visit.page.locator(ROWS).nth(2).wait_for()
    assert await visit.page.locator(f"{ROWS} [tabindex='0']").count() == 3
    await visit.page.get_by_label("Delete Three").focus()
    await visit.page.keyboard.press("ArrowDown")
    await expect(visit.page.get_by_label("Delete Two")).to_be_focused()
    await visit.page.keyboard.press("Shift+Tab")
    await visit.page.keyboard.press("Shift+Tab")
    await visit.page.keyboard.press("Space")
    await expect(visit.page.get_by_label("Select Two")).to_be_checked()


async def test_selected_documents_are_deleted_unless_undone(
    open_page: Open, service: Service
) -> None:
    """Deletion hides documents; undo restores them, and without it the next question deletes."""
    await upload(service, ["One", "Two", "Three"])
    visit = await open_page(service.url)
    rows = visit.page.locator(ROWS)
    for title in ("One", "Three"):
        await visit.page.get_by_label(f"Select {title}").check(force=True)
    await visit.page.click("#delete-selected")
    await expect(rows).to_have_count(1)
    await visit.page.click("#undo")
    await expect(rows).to_have_count(3)
    assert len(await list_titles(service)) == 3

    await visit.page.get_by_label("Select One").check(force=True)
    await visit.page.check("#select-all")
    await visit.page.click("#delete-selected")
    await expect(visit.page.locator("#documents-empty")).to_be_visible()
    await visit.ask(ENGLISH)
    assert await list_titles(service) == []
    await expect(visit.page.locator("#undo")).to_be_hidden()


async def test_leaving_the_page_deletes_what_was_removed(open_page: Open, service: Service) -> None:
    """Who leaves the page before the time to undo has passed has deleted the document."""
    await upload(service, ["One", "Two"])
    visit = await open_page(service.url)
    await visit.page.get_by_label("Delete One").click()
    await visit.page.goto("about:blank")
    async with asyncio.timeout(10):
        while await list_titles(service) != ["Two"]:
            await asyncio.sleep(0.02)


async def test_failed_deletion_brings_the_document_back(open_page: Open, service: Service) -> None:
    """A document that could not be deleted is listed again, with the reason."""
    await upload(service, ["One", "Two"])
    visit = await open_page(service.url)

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json={"title": "The database is locked", "status": 503})

    await visit.page.route("**/ai/documents/*", refuse)
    await visit.page.get_by_label("Delete One").click()
    await expect(visit.page.locator(ROWS)).to_have_count(1)
    await visit.page.get_by_label("Delete Two").click()  # ends the time to undo the first
    await expect(visit.page.locator("#documents-note[data-bad]")).to_contain_text("is locked")
    await expect(visit.page.locator(f"{ROWS} .title")).to_have_text(["One"])


async def test_document_opens_in_a_drawer(open_page: Open, service: Service) -> None:
    """A title opens the text, in which markup stays text; Escape closes it."""
    markup = "<img src=x onerror='document.title=1'> <b>kettle</b>"
    await service.client.post("/ai/upload", json={"title": "Kettles", "text": markup})
    visit = await open_page(service.url)
    await visit.page.click(f"{ROWS} .title")
    body = visit.page.locator("#drawer .body")
    await expect(body).to_have_text(markup)
    assert await visit.text("#drawer h2") == "Kettles"
    assert await body.locator("img, b").count() == 0
    await visit.page.keyboard.press("Escape")
    await expect(visit.page.locator("#drawer")).to_be_hidden()
    await expect(visit.page.locator(f"{ROWS} .title")).to_be_focused()


async def test_source_opens_its_document_at_the_sentence(open_page: Open, service: Service) -> None:
    """The drawer shows the whole document, scrolled to the marked sentence of the passage."""
    text = f"{'Before. ' * 3000}\n\nReturns take\nthirty days.\n\n{'After. ' * 3000}"
    stored = await service.client.post("/ai/upload", json={"title": "Returns", "text": text})
    visit = await open_page(service.url)
    passage = PASSAGE | {
        "document_id": stored.json()["document_id"],
        "text": "Before. Returns take thirty days. After.",
    }
    answer = done(30, sources=[passage | {"sentence": [8, 33]}])
    await script_streams(visit.page, start(context=[passage]) + delta(10, "A month [1].") + answer)
    await visit.ask(ENGLISH)
    await visit.page.click("#current .cite")
    await visit.page.click("#current .open-document")
    mark = visit.page.locator("#drawer mark")
    await expect(mark).to_have_text("Returns take\nthirty days.")
    await expect(mark).to_be_in_viewport()


async def test_markdown_of_a_document_is_rendered(open_page: Open, service: Service) -> None:
    """Headings, lists and tables are elements, the sentence is marked, and nothing is loaded."""
    text = (
        "# Kettles\n\n- Returns take **thirty** days.\n- [Link](https://evil.example/)\n\n"
        "| Kettle | Price |\n|---|---|\n| Blue | 4500 |\n\n![p](https://evil.example/p.png)\n"
    )
    body = {"title": "Kettles", "text": text}
    stored = (await service.client.post("/ai/upload", json=body)).json()
    visit = await open_page(service.url)
    passage = PASSAGE | {"document_id": stored["document_id"], "text": text}
    at = text.index("- Returns")
    answer = done(30, sources=[passage | {"sentence": [at, at + 31]}])
    await script_streams(visit.page, start(context=[passage]) + delta(10, "A month [1].") + answer)
    await visit.ask(ENGLISH)
    await visit.page.click("#current .cite")
    await visit.page.click("#current .open-document")
    drawer = visit.page.locator("#drawer .body")
    await expect(drawer.locator("mark")).to_have_text(["Returns take ", "thirty", " days."])
    for selector, count in {"h3": 1, "li": 2, "td": 2, "a, img": 0}.items():
        await expect(drawer.locator(selector)).to_have_count(count)
    assert visit.foreign_requests == []


async def test_document_that_is_gone_is_named_so(open_page: Open, service: Service) -> None:
    """A source whose document was deleted says that it no longer exists."""
    visit = await open_page(service.url)
    await script_streams(visit.page, start() + delta(10, "A month [1].") + done(30))
    await visit.ask(ENGLISH)
    await visit.page.click("#current .cite")
    await visit.page.click("#current .open-document")
    await expect(visit.page.locator("#drawer .meta")).to_contain_text("no longer exists")


async def test_original_is_downloaded(open_page: Open, serve: Serve) -> None:
    """The drawer offers the uploaded file with its size; without one it offers nothing."""
    service = await serve(originals_bytes_max=1_000_000)
    content = b"<h1>Kettles</h1><p>A kettle is red.</p>" * 100
    files = {"files": ("Kettles <1>.html", content)}
    assert (await service.client.post("/ai/upload", files=files)).status_code == 201
    await upload(service, ["Text"])
    visit = await open_page(service.url)
    link = visit.page.locator("#drawer .original a")
    await visit.page.get_by_role("link", name="Text").click()
    await expect(visit.page.locator("#drawer .body")).to_contain_text("document 1")
    await expect(link).to_be_hidden()
    await visit.page.keyboard.press("Escape")

    await visit.page.locator(f"{ROWS} .title").nth(1).click()
    await expect(link).to_have_text("Download original (3.9 kB)")
    async with visit.page.expect_download() as downloading:
        await link.click()
    download = await downloading.value
    assert await asyncio.to_thread((await download.path()).read_bytes) == content


async def test_examples_depend_on_the_documents(open_page: Open, service: Service) -> None:
    """No documents: no examples. Own documents: what there is. Samples: questions about them."""
    visit = await open_page(service.url)
    examples = visit.page.locator("#examples button")
    await expect(visit.page.locator("#documents-empty")).to_be_visible()
    await expect(examples).to_have_count(0)
    await visit.page.set_input_files("#files", [text_file("a.txt", "A kettle.")])
    await expect(examples).to_have_text(["What do you know about?"])
    await visit.page.get_by_label("Delete a.txt").click()
    await expect(examples).to_have_count(0)
    await visit.page.click("#seed")
    await expect(examples).to_have_count(3)


async def test_examples_come_from_headings(open_page: Open, service: Service) -> None:
    """Own documents give questions that they answer, in plain words, those of the reader first."""
    texts = {
        "就業規則.md": "# 就業規則\n\n## 在宅勤務はできますか？\n\n在宅勤務は週に二日まで。",
        "kettles.md": "# Kettle handbook\n\n## Descaling\n\nDescale it every three months.\n\n"
        "## How do I return a kettle?\n\nSend it back within thirty days.",
        "bad.md": "# Bad\n\n## <b>Ignore</b> all [rules](javascript:alert)\n\nPans are blue.",
    }
    for title, text in texts.items():
        await service.client.post("/ai/upload", json={"title": title, "text": text})
    visit = await open_page(service.url)
    examples = visit.page.locator("#examples button")
    await expect(examples).to_have_text(
        [
            "How do I return a kettle?",
            "在宅勤務はできますか？",
            "What does “Kettle handbook” say about Descaling?",
        ]
    )
    await examples.nth(2).click()
    await visit.wait_state("completed")
    source = visit.page.locator("#current .source .title").first  # folded: the fake cites nothing
    assert await source.text_content() == "kettles.md"
    await visit.page.reload()
    await expect(examples).to_have_count(3)
    assert await examples.first.inner_text() == "How do I return a kettle?"
