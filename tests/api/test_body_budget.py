"""The budget of bodies in progress."""

from contextlib import suppress

import pytest

from service.api.body_budget import BodyBudget
from service.core.errors import Overloaded


def test_a_user_has_a_share_of_the_budget() -> None:
    """One user's bodies cannot exhaust the budget for others."""
    budget = BodyBudget(100, user_share=0.5)
    with budget.begin_body("a") as first, budget.begin_body("a") as second:
        first(30)
        second(20)
        with pytest.raises(Overloaded, match="you have 50 bytes"):
            second(1)
        with budget.begin_body("b") as other:
            other(50)

    assert budget.bytes_in_progress == 0


def test_bytes_are_released_at_the_end() -> None:
    """A body that fails gives its bytes back."""
    budget = BodyBudget(100, user_share=1.0)
    with suppress(ValueError), budget.begin_body("a") as add_bytes:
        add_bytes(50)
        raise ValueError

    assert budget.bytes_in_progress == 0
