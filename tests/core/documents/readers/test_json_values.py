"""JSON and NDJSON."""

import pytest

from service.core.documents.readers.extracted import Format
from service.core.documents.readers.json_values import read_json
from service.core.errors import FileUnreadable


@pytest.mark.parametrize(
    ("json", "text"),
    [
        ('{"a": {"b": 1, "c": ["x", 2]}, "d": null}', "- a.b: 1\n- a.c: x, 2"),
        ('[{"a": 1, "b": "x"}, {"a": 2}]', "- a: 1; b: x\n- a: 2"),
        ('{"a": 1}\n\n{"a": 2}\n', "- a: 1\n- a: 2"),
        ('{"shop": "K", "items": [{"a": 1}]}', "- shop: K\n\n## items\n\n- a: 1"),
        ('{"a": [[1, 2], {"b": "x\\ny"}]}', "## a\n\n- 1, 2\n- b: x y"),
        ('"text"', "text"),
    ],
)
def test_values_have_their_paths(json: str, text: str) -> None:
    """Records are rows; the list of an object is a section."""
    assert read_json(json.encode(), 1000).text == text


def test_a_text_that_is_not_json_is_kept() -> None:
    """Only its name is that of JSON."""
    extracted = read_json(b"{not json", 1000)

    assert (extracted.text, extracted.format) == ("{not json", Format.TEXT)


def test_deep_nesting_is_rejected() -> None:
    """Python's stack is limited."""
    with pytest.raises(FileUnreadable, match="nested too deeply"):
        read_json(b"[" * 100_000 + b"]" * 100_000, 1000)
