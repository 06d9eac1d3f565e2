"""The card of an answer: long questions, citations, code, waiting, and the Stop button."""

import asyncio

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Open, Visit
from tests.browser.test_page import ENGLISH, JAPANESE, PASSAGE, delta, done, script_streams, start
from tests.conftest import Service
from tests.fakes.provider import Behaviour, ProviderFake

pytestmark = pytest.mark.slow

# The contrast of an element's text with what is behind it (WCAG 2.2).
CONTRAST = """element => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  let behind = element;
  while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
    .map(parse).map(light).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_buttons_are_readable_under_the_mouse(
    open_page: Open, service: Service, fake: ProviderFake, scheme: str
) -> None:
    """Ask and Stop have enough contrast, also while the mouse is over them."""
    visit = await open_page(service.url, color_scheme=scheme)
    await visit.page.uncheck("#grounded")
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after="request"))
    for selector in ("#send", "#stop"):
        button = visit.page.locator(selector)
        for hover in (False, True):
            if hover:
                await button.hover()
            assert await button.evaluate(CONTRAST) >= 4.5, (selector, hover)
        await visit.page.fill("#question", ENGLISH)
        await visit.page.press("#question", "Enter")
        await visit.page.locator("#stop").wait_for()
    release.set()
    await visit.wait_ended()


async def test_latin_text_is_not_set_in_a_japanese_font(visit: Visit) -> None:
    """English comes first in a Latin serif font, Japanese in a Japanese one, on the same page."""
    family = (
        "(lang) => getComputedStyle(document.querySelector(`h2.question:lang(${lang})`)).fontFamily"
    )
    await visit.ask(ENGLISH)
    english = await visit.page.evaluate(family, "en")
    await visit.ask(JAPANESE)
    japanese = await visit.page.evaluate(family, "ja")
    assert english.startswith('"Iowan Old Style"')
    assert english.index("Georgia") < english.index("Mincho")
    assert japanese.index("Mincho") < japanese.index("Georgia")


async def test_long_question_is_folded(visit: Visit) -> None:
    """A long question has four lines, can be shown completely, and does not hide the answer."""
    question = visit.page.locator("#current .question")
    height = "element => element.getBoundingClientRect().height"
    await visit.ask("Why?")
    await expect(visit.page.locator("#current .unfold")).to_be_hidden()
    line = await question.evaluate(height)
    await visit.ask(f"{ENGLISH} " + "Please tell me. " * 1000)
    folded = await question.evaluate(height)
    assert folded <= 4 * line + 1
    await expect(visit.page.locator("#current .text")).to_be_in_viewport()
    await visit.page.click("#current .unfold")
    assert await question.evaluate(height) > 10 * folded
    await visit.page.click("#current .unfold")
    assert await question.evaluate(height) == pytest.approx(folded)


async def test_source_shows_the_supporting_sentence(visit: Visit) -> None:
    """The line below a source's title is the sentence that supports the answer."""
    passage = PASSAGE | {"text": "## Tea\n\nFirst. Returns take thirty days. Last."}
    await script_streams(
        visit.page,
        start(context=[passage])
        + delta(10, "A month [1].")
        + done(30, sources=[passage | {"sentence": [15, 41]}]),
    )
    await visit.ask(ENGLISH)
    assert await visit.text("#current .glimpse") == "Returns take thirty days."


async def test_citation_has_a_card(visit: Visit) -> None:
    """With mouse or keyboard on a mark, a card shows title and sentence; Escape hides it."""
    text = f"{'Before. ' * 40}Returns take thirty days. {'After. ' * 60}"
    passage, at = PASSAGE | {"text": text}, text.index("Returns")
    await script_streams(
        visit.page,
        start(context=[passage])
        + delta(10, "A month [1].")
        + done(30, sources=[passage | {"sentence": [at, at + 25]}]),
    )
    await visit.ask(ENGLISH)
    card = visit.page.locator("#citation-card")
    mark = visit.page.locator("#current .cite")

    await mark.hover()
    await expect(card).to_be_visible()
    assert await card.locator(".title").inner_text() == "Returns"
    assert await card.locator("mark").inner_text() == "Returns take thirty days."
    assert len(await card.inner_text()) < 300
    assert await mark.get_attribute("aria-describedby") == "citation-card"
    await visit.page.mouse.move(0, 0)
    await expect(card).to_be_hidden()

    await visit.page.focus("#question")
    while not await mark.evaluate("element => element === document.activeElement"):
        await visit.page.keyboard.press("Tab")
    await expect(card).to_be_visible()
    box = await card.bounding_box()
    assert box
    assert 0 <= box["x"] <= 1100 - box["width"]
    await visit.page.keyboard.press("Escape")
    await expect(card).to_be_hidden()


async def test_code_is_copied_without_its_button(open_page: Open, service_url: str) -> None:
    """A block of code has a button that copies exactly the code."""
    visit = await open_page(service_url, permissions=["clipboard-read", "clipboard-write"])
    await script_streams(
        visit.page, start() + delta(30, "```sh\nkotae serve\nkotae ask\n```\n") + done(31)
    )
    await visit.ask(ENGLISH)
    await visit.page.hover("#current pre")
    await visit.page.click("#current .copy-code")
    await expect(visit.page.locator("#current .copy-code")).to_have_text("Copied")
    copied = await visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == "kotae serve\nkotae ask"


async def test_waiting_shows_the_elapsed_seconds(fake_visit: Visit, fake: ProviderFake) -> None:
    """After two seconds without an answer the page counts them, until the answer ends."""
    release = asyncio.Event()
    fake.next(Behaviour(hold=release, hold_after="request"))
    await fake_visit.begin(ENGLISH)
    elapsed = fake_visit.page.locator("#current .elapsed")
    await expect(elapsed).to_be_hidden()
    await expect(elapsed).to_have_text("2 s")
    release.set()
    await fake_visit.wait_ended()
    await expect(elapsed).to_be_hidden()


async def test_reduced_motion_stops_animations(open_page: Open, service_url: str) -> None:
    """With reduced motion nothing is animated while an answer arrives or appears."""
    visit = await open_page(service_url, reduced_motion="reduce")
    await visit.begin(ENGLISH)
    assert await visit.page.evaluate("document.getAnimations().length") == 0
    await visit.wait_ended()
    assert await visit.page.evaluate("document.getAnimations().length") == 0


async def test_passage_is_shown_as_markdown(visit: Visit) -> None:
    """A sentence in a list, in bold, or in a table is marked, and its glimpse is plain text."""
    text = (
        "## Kettles\n\n- **Returns take thirty days.**\n- Other things.\n\n"
        "| Kettle | Price |\n|---|---|\n| Blue | 45 |\n| Red | 60 |\n"
    )
    passage = PASSAGE | {"text": text, "title": "kettles.md"}
    sentences = ("- **Returns take thirty days.**\n", "| Red | 60 |\n", "## Kettles")
    spans = [[text.index(part), text.index(part) + len(part)] for part in sentences]
    streams = [
        start(context=[passage])
        + delta(10, "A month [1].")
        + done(30, sources=[passage | {"sentence": span}])
        for span in spans
    ]
    await script_streams(visit.page, *streams)
    for expected in ("Returns take thirty days.", "Red 60", "Kettles"):
        await visit.ask(ENGLISH)
        await visit.page.hover("#current .cite")
        await expect(visit.page.locator("#citation-card mark")).to_have_text(expected)
        assert await visit.text("#current .glimpse") == expected
        await visit.page.click("#current .cite")
        quote = visit.page.locator("#current .source[open] blockquote")
        assert await quote.locator("li strong").inner_text() == "Returns take thirty days."
        assert await quote.locator("td").all_inner_texts() == ["Blue", "45", "Red", "60"]


async def test_plain_passage_is_not_rendered(visit: Visit) -> None:
    """The text of a file that is no Markdown keeps its marks and its lines."""
    passage = PASSAGE | {"text": "# not a heading\n* no *list*", "title": "notes.txt"}
    await script_streams(
        visit.page, start(context=[passage]) + delta(10, "A [1].") + done(30, sources=[passage])
    )
    await visit.ask(ENGLISH)
    await visit.page.click("#current .cite")
    assert await visit.text("#current .source[open] blockquote") == passage["text"]


async def test_unverified_citation_is_marked(visit: Visit) -> None:
    """A source whose claim failed the verification says so: in the text, card and list."""
    other = PASSAGE | {"n": 2, "chunk_id": "d"}
    sources = [PASSAGE | {"supported": False}, other]
    text = "It takes a year [1], or thirty days [2]."
    await script_streams(
        visit.page,
        start(context=[PASSAGE, other]) + delta(50, text) + done(60, sources=sources),
    )
    await visit.ask(ENGLISH)
    marks = visit.page.locator("#current .cite")
    assert await marks.evaluate_all("all => all.map((one) => one.className)") == [
        "cite unverified",
        "cite",
    ]
    assert "not verified" in str(await marks.first.get_attribute("aria-label"))
    badges = visit.page.locator("#current .source .unverified")
    await expect(badges.first).to_have_text("Not verified")
    await expect(badges.nth(1)).to_be_hidden()
    reason = visit.page.locator("#citation-card .why-unverified")
    await marks.nth(1).hover()
    await expect(visit.page.locator("#citation-card")).to_be_visible()
    await expect(reason).to_be_hidden()
    await marks.first.hover()
    await expect(reason).to_be_visible()

    await visit.page.reload()
    await visit.page.click("#earlier-list summary")
    await expect(visit.page.locator("#earlier-list .cite.unverified")).to_have_count(1)


@pytest.mark.parametrize(
    ("locale", "label"), [("en-US", "Searched for: "), ("ja-JP", "検索した質問：")]
)
async def test_a_corrected_question_is_shown(
    open_page: Open, service_url: str, locale: str, label: str
) -> None:
    """Below a misspelled question is the one that was searched; below others is nothing."""
    visit = await open_page(service_url, locale=locale)
    line = visit.page.locator("#current .searched-for")
    await visit.ask("How many days of paid laeve are there per year?")
    await expect(line).to_have_text(f"{label}How many days of paid leave are there per year?")
    await visit.ask(ENGLISH)
    await expect(line).to_be_hidden()
