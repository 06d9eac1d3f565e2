"""Presentations."""

import datetime as dt

import pytest

from service.core.documents.readers.slides import read_pptx
from service.core.errors import FileUnreadable
from tests.fakes.files import build_pptx, build_zip


def test_a_slide_is_a_page() -> None:
    """Its title is a heading, its paragraphs are a list."""
    extracted = read_pptx(build_pptx([["Plan", "One", "Two"], ["End", "Bye"]], title="Deck"), 1000)

    assert extracted.text == "## Plan\n\n- One\n- Two\n\f\n## End\n\nBye"
    assert (extracted.has_pages, extracted.title, extracted.date) == (
        True,
        "Deck",
        dt.date(2024, 5, 6),
    )


@pytest.mark.parametrize(
    "data",
    [build_pptx([]), build_pptx([["", ""]]), build_zip({"a": "b"})],
    ids=["no slides", "no text", "no presentation"],
)
def test_a_presentation_without_text_is_rejected(data: bytes) -> None:
    """It has no slides, or only pictures."""
    with pytest.raises(FileUnreadable):
        read_pptx(data, 1000)
