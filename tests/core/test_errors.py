"""The error hierarchy and its documentation."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import errors
from service.core.errors import KotaeError, get_error_class, retry_delay


def tree(root: type[KotaeError]) -> list[type[KotaeError]]:
    """A class and all of its subclasses."""
    return [root, *(error for child in root.__subclasses__() for error in tree(child))]


def test_the_docstring_lists_all_errors() -> None:
    """The docstring of core/errors.py lists every class with its status and code."""
    documented = re.findall(r"(\w+) +(\d{3}|–) +([a-z_]+) ", errors.__doc__ or "")

    assert {(error.__name__, error.code) for error in tree(KotaeError)} == {
        (name, code) for name, _, code in documented
    }
    assert {error.code: error.status for error in tree(KotaeError)} == {
        code: 500 if status == "–" else int(status) for _, status, code in documented
    }


def test_codes_are_unique() -> None:
    """No two errors share a code."""
    codes = [error.code for error in tree(KotaeError)]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", [error for error in tree(KotaeError) if error.status == 503])
def test_every_503_has_retry_after(error: type[KotaeError]) -> None:
    """Every error with status 503 has a default for `Retry-After`."""
    assert error().retry_after_seconds


@pytest.mark.parametrize("error", tree(KotaeError))
def test_every_failure_can_be_replayed(error: type[KotaeError]) -> None:
    """The code of a log row identifies its error class."""
    assert get_error_class(error.code) is error


@given(st.integers(1, 10_000))
def test_a_retry_delay_doubles_up_to_its_maximum(failures: int) -> None:
    """Each delay is within 50 % of its step, and none is longer than the maximum."""
    delay = retry_delay(failures, first_seconds=0.1, seconds_max=5)
    step = 0.1 * 2 ** min(failures - 1, 20)

    assert min(0.5 * step, 5) <= delay <= min(1.5 * step, 5)
