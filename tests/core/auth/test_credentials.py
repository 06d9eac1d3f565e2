"""Hashing and comparison of credentials."""

import ast
import re
from pathlib import Path

from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from service.core.auth.credentials import hash_credential

SERVICE = Path(__file__).parents[3] / "service"


@hypothesis_given(st.text(max_size=60), st.text(max_size=60))
def test_cache_key_is_the_full_hash(one: str, other: str) -> None:
    """Two credentials have the same cache key only if they are equal."""
    assert (hash_credential(one) == hash_credential(other)) == (one == other)


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
