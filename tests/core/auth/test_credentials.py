"""Hashing and comparison of credentials."""

import ast
import base64
import re
import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from service.core.auth.credentials import (
    Credentials,
    generate_key,
    hash_credential,
    is_canonical_base64url,
    is_key,
    parse_header_credential,
)
from service.core.errors import Unauthorized

SERVICE = Path(__file__).parents[3] / "service"


@hypothesis_given(st.text(max_size=60), st.text(max_size=60))
def test_cache_key_is_the_full_hash(one: str, other: str) -> None:
    """Two credentials have the same cache key only if they are equal."""
    assert (hash_credential(one) == hash_credential(other)) == (one == other)


@hypothesis_given(st.text(alphabet=string.printable, max_size=20))
def test_canonical_base64url_has_one_spelling(text: str) -> None:
    """Canonical is exactly what encoding returns, without padding."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        decoded = b""
    encoded = base64.urlsafe_b64encode(decoded).decode().rstrip("=")

    assert is_canonical_base64url(text) == (encoded == text)


@pytest.mark.parametrize("suffix", ["=", "==", "%3D", " =", "A"])
def test_key_with_a_suffix_is_no_key(suffix: str) -> None:
    """Padding or any other suffix is not part of a key."""
    assert is_key(key := generate_key())
    assert not is_key(key + suffix)


def test_key_has_one_spelling() -> None:
    """Of the 64 last characters, the 16 without ignored bits are keys."""
    key = generate_key()
    alphabet = string.ascii_letters + string.digits + "-_"

    assert sum(is_key(key[:-1] + last) for last in alphabet) == 16


@pytest.mark.parametrize("spelling", ["{}=", "{}\n", " {}", "{}===="])
def test_basic_credentials_have_one_spelling(spelling: str) -> None:
    """Basic credentials with other padding or whitespace are refused."""
    value = base64.b64encode(f"x:{generate_key()}".encode()).decode()
    with pytest.raises(Unauthorized):
        parse_header_credential(Credentials(authorization=["Basic " + spelling.format(value)]))


@pytest.mark.parametrize(
    "spelling", ["Bearer\t{}", "Bearer {}\xa0", "Bearer \x85{}", "Bearer \u2003{}", "Bearer \t{}"]
)
def test_bearer_credentials_have_one_spelling(spelling: str) -> None:
    """Spaces separate scheme and credential; other white space is not removed."""
    key = generate_key()

    assert parse_header_credential(Credentials(authorization=[f"bearer  {key} "])) == key
    with suppress(Unauthorized):
        spelled = parse_header_credential(Credentials(authorization=[spelling.format(key)]))
        assert not is_key(str(spelled))


@pytest.mark.parametrize("spelling", ["{}\xa0", "\x85{}", "{}\x0b", "{} {}"])
def test_white_space_is_part_of_a_key(spelling: str) -> None:
    """Of X-API-Key only the white space of HTTP is removed."""
    key = generate_key()
    value = spelling.format(key, key)

    assert parse_header_credential(Credentials(api_key=[f" {key}\t"])) == key
    assert parse_header_credential(Credentials(api_key=[value])) == value


def test_secrets_are_compared_in_constant_time() -> None:
    """Secrets and hashes are compared by `hmac.compare_digest`, never by `==`."""
    compared = 0
    for file in (SERVICE / "core" / "auth").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and any(
                isinstance(op, ast.Eq | ast.NotEq) for op in node.ops
            ):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                secret = any(
                    re.search(r"(hash|hashed|secret|credential|value)$", side) and ".c." not in side
                    for side in sides
                )
                in_database = any(".c." in side for side in sides)
                assert (
                    not secret
                    or in_database
                    or any(isinstance(side, ast.Constant) for side in node.comparators)
                ), ast.unparse(node)
            compared += isinstance(node, ast.Attribute) and node.attr == "compare_digest"
    assert compared >= 3
