"""Errors of members."""

from service.api.openai.rejections import reject


def test_an_error_names_the_member() -> None:
    """In its text and as `param`."""
    error = reject("input[0]", "is empty")

    assert error.detail == "input[0]: is empty"
    assert error.extra == {"param": "input[0]"}
