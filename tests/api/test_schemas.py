"""The models of request bodies."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.schemas import AskBody, LimitsBody, PlanBody, QuotaBody, UserBody


@pytest.mark.parametrize(
    "members", [{"temperature": False}, {"max_tokens": "5"}, {"grounded": "yes"}]
)
def test_values_of_another_type_are_rejected(members: dict[str, Any]) -> None:
    """Strings and booleans are not converted to numbers, nor strings to booleans."""
    with pytest.raises(ValidationError):
        AskBody.model_validate({"prompt": "Why?"} | members)


@pytest.mark.parametrize("members", [{"max_tokens": 5.0}, {"temperature": 1}])
def test_integers_and_floats_are_numbers(members: dict[str, Any]) -> None:
    """JSON does not distinguish 5 and 5.0."""
    AskBody.model_validate({"prompt": "Why?"} | members)


def test_limits_of_a_plan_may_be_nested() -> None:
    """`{name, limits}` means the same as the limits alone."""
    limits = {"tokens_per_day": 5000, "cost_usd_per_month": "1.50"}
    nested = PlanBody.model_validate({"name": "team", "limits": limits})

    assert nested.to_limits() == LimitsBody.model_validate(limits).to_limits()


def test_limits_of_a_plan_are_not_ambiguous() -> None:
    """Nested limits together with single limits are rejected."""
    with pytest.raises(ValidationError, match="exclude each other"):
        PlanBody.model_validate({"limits": {}, "concurrent": 1})


@pytest.mark.parametrize("model", [QuotaBody, UserBody])
def test_read_only_fields_are_accepted(model: type[QuotaBody | UserBody]) -> None:
    """Bodies may contain the fields that `GET` returns."""
    user = {"user_id": "alice", "disabled": True, "plan": None, "limits": {"concurrent": 1}}

    model.model_validate(user)
