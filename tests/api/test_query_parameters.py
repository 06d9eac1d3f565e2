"""Query parameters: unknown and repeated ones are refused on API routes, and ignored elsewhere."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute

from service.api import answers, documents, keys, logs, quotas, sessions
from service.api.query_parameters import PARAMETERS_MAX, list_parameters
from tests.conftest import Serve, Service, shared_loop
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False}


def list_routes() -> Iterator[APIRoute]:
    """All API routes."""
    for module in (answers, documents, keys, logs, quotas, sessions):
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            yield route


@shared_loop
async def test_every_api_route_refuses_unknown_parameters(shared_service: Service) -> None:
    """A parameter that a route does not have is refused, with the names that it has."""
    for route in list_routes():
        [method] = sorted(route.methods or set())
        path = route.path.format(answer_id="a", document_id="d", key_id="k", user_id="u", name="n")
        response = await shared_service.client.request(
            method, path, params={"prompt": "x", "q": "x", "sorted": ""}, json=ASK
        )
        problem = is_problem(response, 422, "invalid_request")
        what = next(
            error["what"] for error in problem["errors"] if error["where"] == "query.sorted"
        )
        names = ", ".join(sorted(list_parameters(route)))
        assert (
            what == f"unknown parameter; {f'valid are {names}' if names else 'this route has none'}"
        )


@shared_loop
@pytest.mark.parametrize("path", ["/ai/test", "/ai/stream", "/ai/answers"])
async def test_questions_with_unknown_parameters_are_not_answered(
    shared_service: Service, path: str
) -> None:
    """Options of a question belong in the body of `POST`; in the URL they would be ignored."""
    in_progress = shared_service.services.answers.statistics().in_progress

    response = await shared_service.client.post(f"{path}?grounded=false", json=ASK)

    is_problem(response, 422, "invalid_request")
    assert shared_service.services.answers.statistics().in_progress == in_progress


@shared_loop
@pytest.mark.parametrize(
    "url",
    [
        "/ai/logs?limit=1&limit=2",
        "/ai/logs?limit=1&l%69mit=1",
        "/ai/stream?prompt=a&prompt=b",
        "/ai/stream?prompt=a&key=b&key=b",
        "/ai/answers/x/events?last_event_id=x.1&last_event_id=x.1",
        "/ai/search?q=a&q=a",
    ],
)
async def test_single_parameters_are_not_repeated(shared_service: Service, url: str) -> None:
    """Of a repeated parameter one value would be ignored, so it is refused."""
    problem = is_problem(await shared_service.client.get(url), 422, "invalid_request")

    assert "must not be repeated" in problem["detail"]


@shared_loop
async def test_lists_are_repeated_parameters(shared_service: Service) -> None:
    """`documents` takes several values."""
    response = await shared_service.client.get("/ai/search?q=a&documents=b&documents=c")

    assert response.status_code == 200


@shared_loop
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/signin", "/web/stream.js", "/openapi.json"),
        *("/health/live", "/health/ready", "/metrics"),
    ],
)
async def test_pages_and_health_ignore_parameters(shared_service: Service, path: str) -> None:
    """Pages, static files, the API description, health and metrics ignore parameters."""
    url = f"{path}?utm_source=mail&v=2&v=3&%00"

    assert (await shared_service.client.get(url)).status_code == 200


@shared_loop
async def test_the_number_of_parameters_is_limited(shared_service: Service) -> None:
    """A URL full of parameters is refused in one error."""
    query = "&".join(["a=b"] * (PARAMETERS_MAX + 1))
    problem = is_problem(
        await shared_service.client.get(f"/ai/logs?{query}"), 422, "invalid_request"
    )

    assert problem["detail"] == f"query: more than {PARAMETERS_MAX} parameters"


@shared_loop
@pytest.mark.parametrize(
    "query",
    [
        *("limit=nan", "limit=inf", "limit=1e1", "limit=-1", "limit=0", "limit=1.5", "limit="),
        *("limit=" + "9" * 5000, "limit=%00", "limit=1%00", "model=%00", "user_id=a%00"),
    ],
)
async def test_impossible_values_are_refused(shared_service: Service, query: str) -> None:
    """Numbers that are not small integers, and identifiers with NUL, are refused."""
    response = await shared_service.client.get(f"/ai/logs?{query}")

    assert query.partition("=")[0] in is_problem(response, 422, "invalid_request")["detail"]


@shared_loop
@pytest.mark.parametrize(
    "query",
    [
        *("temperature=nan", "temperature=-inf", "temperature=1e999", "max_tokens=0"),
        *("grounded=maybe", "grounded=", "user_id=%00", "model=%00", "documents=%00"),
        *("key=%00", "key=a%00", "key=a%20b", "key=" + "k" * 256, "key="),
    ],
)
async def test_impossible_options_of_a_question_are_refused(
    shared_service: Service, query: str
) -> None:
    """`GET /ai/stream` validates like the body of `POST`."""
    response = await shared_service.client.get(f"/ai/stream?prompt=a&{query}")

    assert query.partition("=")[0] in is_problem(response, 422, "invalid_request")["detail"]


async def test_unknown_parameter_does_not_use_up_a_ticket(serve: Serve) -> None:
    """A ticket is not redeemed by a request that is refused."""
    service = await serve(seeded=True)
    started: dict[str, Any] = (
        await service.client.post("/ai/answers", json={"prompt": "?"})
    ).json()

    refused = await service.client.get(started["events_url"] + "&format=json")
    accepted = await service.client.get(started["events_url"])

    assert (refused.status_code, accepted.status_code) == (422, 200)
    assert "last_event_id, ticket" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/ai/test", "/ai/logs", "/ai/logs/x", "/ai/keys", "/seed"])
async def test_credential_is_checked_first(serve: Serve, path: str) -> None:
    """Without a credential the response is 401, whatever the query."""
    service = await serve(auth="keys")
    method = "POST" if path in {"/ai/test", "/seed"} else "GET"

    response = await service.client.request(method, f"{path}?unknown=1", json={})

    is_problem(response, 401, "unauthorized")
