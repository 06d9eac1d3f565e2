"""Problem responses in tests."""

from typing import Any

import httpx2


def is_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that a response is this problem and return it."""
    problem: dict[str, Any] = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail"} <= problem.keys()
    return problem
