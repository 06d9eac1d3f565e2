"""The error tree and its drawing."""

import re

import pytest

from service.core import errors
from service.core.errors import KotaeError, by_code


def tree(root: type[KotaeError]) -> list[type[KotaeError]]:
    """A class and all below it."""
    return [root, *(each for child in root.__subclasses__() for each in tree(child))]


def test_the_drawing_is_the_tree() -> None:
    """The docstring of core/errors.py shows every class with its status and code, and no other."""
    drawn = re.findall(r"(\w+) +(\d{3}|–) +([a-z_]+) ", errors.__doc__ or "")

    assert {(each.__name__, each.code) for each in tree(KotaeError)} == {(name, code) for name, _, code in drawn}
    assert {each.code: each.status for each in tree(KotaeError)} == {
        code: 500 if status == "–" else int(status) for _, status, code in drawn
    }


def test_codes_are_unique() -> None:
    """No two errors share a code."""
    codes = [each.code for each in tree(KotaeError)]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", [each for each in tree(KotaeError) if each.status == 503])
def test_every_503_says_when_to_come_back(error: type[KotaeError]) -> None:
    """A caller that is sent away is told for how long."""
    assert error().retry_after_seconds


@pytest.mark.parametrize("error", tree(KotaeError))
def test_every_failure_can_be_replayed(error: type[KotaeError]) -> None:
    """The code on a row leads back to its error."""
    assert by_code(error.code) is error
