"""Budgets over HTTP."""

from decimal import Decimal
from typing import Any

import pytest

from service.core.provider_file import ModelPrice
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

BODY = {"name": "b", "subject": "all", "amount_usd": "0.5", "period": "month"}
ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 10}


async def create(service: Service, **fields: Any) -> dict[str, Any]:
    """Create a budget and return it."""
    response = await service.client.post("/ai/budgets", json=BODY | fields)
    assert response.status_code == 201, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_a_budget_is_created_changed_and_deleted(service: Service) -> None:
    """The routes return the budget with its current window."""
    budget = await create(service)
    path = f"/ai/budgets/{budget['id']}"
    assert budget["amount_usd"] == "0.5"
    assert budget["current"]["spent_usd"] == "0"
    assert (await service.client.get(path)).json() == budget
    response = await service.client.patch(path, json={"amount_usd": "2", "action": "refuse"})
    changed = response.json()
    assert (changed["amount_usd"], changed["action"]) == ("2", "refuse")
    assert (await service.client.get("/ai/budgets")).json() == {"items": [changed]}
    assert (await service.client.delete(path)).status_code == 204
    for response in (
        await service.client.get(path),
        await service.client.patch(path, json={}),
        await service.client.delete(path),
    ):
        assert is_problem(response, 404, "not_found")


async def test_the_spend_equals_the_analytics(serve: Serve, fake: ProviderFake) -> None:
    """After answers, the spend of a budget for everything is the cost in the analytics."""
    price = ModelPrice(input=Decimal(1), output=Decimal(2))
    service = await serve(
        openai_base_url=fake.base_url, openai_api_key="k", model="m", prices={"m": price}
    )
    await create(service)
    for _ in range(3):
        await service.client.post("/ai/test", json=ASK)
    await service.wait_idle()
    (budget,) = (await service.client.get("/ai/budgets")).json()["items"]
    start = budget["current"]["start"]
    analytics = await service.client.get("/ai/analytics", params={"since": start})
    (bucket,) = analytics.json()["items"]
    assert budget["current"]["spent_usd"] == bucket["results"][0]["cost"] != "0"


async def test_a_name_is_used_once(service: Service) -> None:
    """A second budget with a name is a conflict."""
    await create(service)
    response = await service.client.post("/ai/budgets", json=BODY)
    assert is_problem(response, 409, "budget_exists")


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "team:x"},
        {"subject": "user:"},
        {"amount_usd": "0"},
        {"amount_usd": "1e9"},
        {"period": "week"},
        {"thresholds": []},
        {"thresholds": ["50"]},
        {"thresholds": [0]},
        {"action": "stop"},
        {"name": "a b"},
        {"extra": 1},
    ],
)
async def test_a_wrong_body_is_refused(service: Service, fields: dict[str, Any]) -> None:
    """Unknown members and values of the wrong shape are 422, and nothing is created."""
    response = await service.client.post("/ai/budgets", json=BODY | fields)
    assert is_problem(response, 422, "invalid_request")
    assert (await service.client.get("/ai/budgets")).json() == {"items": []}


async def test_unknown_alerts_are_not_found(service: Service) -> None:
    """Retrying an alert that does not exist is 404; the list is empty."""
    response = await service.client.post("/ai/budget-alerts/none/retry")
    assert is_problem(response, 404, "not_found")
    for state in ("unsent", "pending", "delivered", "failed"):
        response = await service.client.get("/ai/budget-alerts", params={"state": state})
        assert response.json() == {"items": []}
