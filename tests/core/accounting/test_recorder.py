"""Metrics of recorded outcomes."""

from typing import Any

from tests.conftest import Service

FREE: dict[str, Any] = {"prompt": "Say something.", "grounded": False}


async def test_an_unpriced_model_costs_null(service: Service) -> None:
    """Unknown is null and counted, never 0."""
    assert (await service.client.post("/ai/test", json=FREE)).json()["estimated_cost"] is None
    assert b"kotae_unpriced_answers_total 1.0" in (await service.client.get("/metrics")).content
