"""Secret keys: parsing and derivation."""

import base64

import pytest

from service.core.secret_keys import derive_key, parse_secret_keys

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
BASE64 = base64.urlsafe_b64encode(OTHER).decode()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (KEY.hex(), [KEY]),
        (BASE64, [OTHER]),
        (BASE64.rstrip("="), [OTHER]),
        (f"{KEY.hex()} , {BASE64}", [KEY, OTHER]),
    ],
)
def test_keys_are_hexadecimal_or_base64url(text: str, keys: list[bytes]) -> None:
    """One key, or two of which the first one signs."""
    assert parse_secret_keys(text) == keys


@pytest.mark.parametrize(
    "text",
    ["", "hunter2", KEY.hex()[2:], "z" * 64, ",".join([KEY.hex()] * 3), "é" * 43, KEY.hex() + "00"],
)
def test_other_texts_are_refused_without_being_shown(text: str) -> None:
    """The error names the setting and does not repeat the value."""
    with pytest.raises(ValueError, match="KOTAE_SECRET_KEY") as caught:
        parse_secret_keys(text)
    assert not text or text not in str(caught.value)


def test_purposes_have_different_keys() -> None:
    """A key is derived from the secret key and the purpose."""
    keys = {derive_key(key, purpose) for key in (KEY, OTHER) for purpose in ("a", "b")}

    assert len(keys) == 4
    assert {len(key) for key in keys} == {32}
