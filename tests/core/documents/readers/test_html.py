"""HTML pages: their main content as Markdown."""

import datetime as dt

import pytest

from service.core.documents.readers.html import convert_html, read_html
from service.core.errors import FileUnreadable, NotText, TooLarge

BYTES_MAX = 1_000_000


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<h2>Warranty<a>¶</a></h2><p>Two\n <b>years</b>.", "## Warranty\n\nTwo years."),
        ("<p>One<br>two", "One\ntwo"),
        ("<ul><li>a<li><p>b</p><ul><li>c</ul></ul>d", "- a\n- b\n   - c\n\nd"),
        ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b"),
        ("<table><tr><th>A<th>B<tr><td>1|2<td>3</table>", "| A | B |\n|---|---|\n| 1\\|2 | 3 |"),
        ("<table><tr><td><p>a<p>b<td>c</table>", "a\n\nb\n\nc"),
        ("<pre>  a\n   b\n</pre>", "```\n  a\n   b\n```"),
        ("<dl><dt>Term<dd>Meaning</dl>", "Term\n\nMeaning"),
        ("a<script>x</script>b<style>y</style><!-- z -->", "ab"),
        ("<nav>Home</nav><p>Text<footer>©</footer>", "Text"),
        ("<p hidden>a<p style='display : none'>b<p aria-hidden=true>c<p>d", "d"),
        ("<header>Logo</header><p>Menu<main><p>Content of the page</main>", "Content of the page"),
        ("<header><h1>Title</h1></header><p>Text", "# Title\n\nText"),
        (f"<article>Short</article><p>{'Long ' * 20}", f"Short\n\n{'Long ' * 20}".strip()),
        ("<form><p>ASP.NET<input value=x></form>", "ASP.NET"),
        ("", ""),
    ],
)  # fmt: skip
def test_elements_become_markdown(html: str, markdown: str) -> None:
    """Without scripts, styles, navigation and hidden elements."""
    assert convert_html(html).strip() == markdown


def test_title_date_and_encoding_come_from_the_head() -> None:
    """The declared encoding is used."""
    page = (
        "<!doctype html><meta charset=Shift_JIS><title> 保証 \n期間</title>"
        "<meta property='article:modified_time' content='2024-05-06T07:00:00Z'><p>二年です。"
    ).encode("cp932")
    extracted = read_html(page, BYTES_MAX)

    assert (extracted.text, extracted.title, extracted.encoding, extracted.date) == (
        "二年です。",
        "保証 期間",
        "cp932",
        dt.date(2024, 5, 6),
    )


def test_a_wrong_declaration_is_ignored() -> None:
    """The bytes decide then."""
    extracted = read_html("<meta charset=us-ascii><p>灯台".encode(), BYTES_MAX)

    assert (extracted.text, extracted.encoding) == ("灯台", "utf-8")


@pytest.mark.parametrize("html", [b"<html><body><img src=x></body></html>", b"<html></html>"])
def test_a_page_without_text_is_rejected(html: bytes) -> None:
    """For example, an application that scripts fill."""
    with pytest.raises(FileUnreadable, match="contains no text"):
        read_html(html, BYTES_MAX)


def test_a_binary_page_is_rejected() -> None:
    """Its name may be that of a page."""
    with pytest.raises(NotText):
        read_html(b"<html>" + bytes(range(256)) * 10, BYTES_MAX)


def test_the_text_is_limited() -> None:
    """By its size without markup."""
    with pytest.raises(TooLarge):
        read_html(b"<p>" + b"word " * 100, 100)


def test_deep_nesting_is_no_recursion() -> None:
    """Python's stack would end at a thousand elements."""
    assert convert_html("<span>" * 5_000 + "deep") == "deep\n\n"
