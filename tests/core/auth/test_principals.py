"""Roles and scopes."""

from service.core.auth.principals import EVERYTHING, Scope


def test_everything_is_everything() -> None:
    """The scopes of a key that names none are all there are."""
    assert frozenset(Scope) == EVERYTHING
