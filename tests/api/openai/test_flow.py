"""Which requests are the same one, sent again."""

from typing import Any

import pytest

from service.api.openai.flow import compute_fingerprint
from service.core.auth.principals import Principal, Role

ALICE = Principal(user_id="alice", role=Role.USER, credential="c", key_id="k", key_lineage="l")
SCOPE: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "query_string": b"",
    "headers": [(b"accept", b"*/*"), (b"x-stainless-retry-count", b"0")],
}


def test_attempts_of_one_request_are_equal() -> None:
    """The headers of the attempt, their order, and a rotated key do not matter."""
    rotated = Principal(
        user_id="alice", role=Role.USER, credential="d", key_id="k2", key_lineage="l"
    )
    again = SCOPE | {"headers": [(b"x-stainless-retry-count", b"1"), (b"accept", b"*/*")]}

    assert compute_fingerprint(SCOPE, b"{}", ALICE) == compute_fingerprint(again, b"{}", rotated)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/v1/responses"},
        {"query_string": b"a=b"},
        {"headers": [(b"accept", b"*/*"), (b"x-user", b"bob")]},
    ],
)
def test_everything_else_makes_another_request(change: dict[str, Any]) -> None:
    """Path, query and any other header."""
    first = compute_fingerprint(SCOPE, b"{}", ALICE)

    assert compute_fingerprint(SCOPE | change, b"{}", ALICE) != first
    assert compute_fingerprint(SCOPE, b"{} ", ALICE) != first
