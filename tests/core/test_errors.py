"""The error tree and its drawing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import errors
from service.core.errors import KotaeError, get_error_class, retry_delay


def tree(root: type[KotaeError]) -> list[type[KotaeError]]:
    """A class and all below it."""
    return [root, *(each for child in root.__subclasses__() for each in tree(child))]


def test_the_drawing_is_the_tree() -> None:
    """The docstring of core/errors.py shows every class with its status and code, and no other."""
    drawn = re.findall(r"(\w+) +(\d{3}|–) +([a-z_]+) ", errors.__doc__ or "")

    assert {(each.__name__, each.code) for each in tree(KotaeError)} == {
        (name, code) for name, _, code in drawn
    }
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
    assert get_error_class(error.code) is error


@given(st.integers(1, 10_000))
def test_a_retry_delay_doubles_up_to_its_maximum(failures: int) -> None:
    """Each delay is within 50 % of its step, and none is longer than the maximum."""
    delay = retry_delay(failures, first_seconds=0.1, seconds_max=5)
    step = 0.1 * 2 ** min(failures - 1, 20)

    assert min(0.5 * step, 5) <= delay <= min(1.5 * step, 5)
