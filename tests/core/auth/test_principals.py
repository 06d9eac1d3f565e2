"""Roles and scopes."""

from service.core.auth.principals import ALL_SCOPES, Scope


def test_all_scopes_contains_every_scope() -> None:
    """A key without explicit scopes has all of them."""
    assert frozenset(Scope) == ALL_SCOPES
