"""`POST /mcp` as an HTTP route: credentials, origins, limits, disconnects."""

import asyncio
from typing import Any

import pytest

from service.core.auth.principals import Scope
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.mcp_clients import DOCUMENT, HEADERS, build_call, call_tool
from tests.problems import is_problem

ASK = build_call("ask", question="What is the zebra code?")


async def test_a_message_without_a_credential_is_refused(serve: Serve) -> None:
    """The response is 401 with a problem, before the message is read."""
    service = await serve(auth="keys")

    response = await service.client.post("/mcp", content=b"{", headers=HEADERS)

    is_problem(response, 401, "unauthorized")


async def test_pages_of_other_origins_are_refused(service: Service) -> None:
    """A foreign Origin is 403, as the protocol demands against DNS rebinding."""
    response = await service.client.post(
        "/mcp", json=ASK, headers=HEADERS | {"Origin": "https://evil.example"}
    )

    is_problem(response, 403, "foreign_origin")


async def test_foreign_hosts_are_refused(service: Service) -> None:
    """Without authentication a rebound name is refused."""
    response = await service.client.post(
        "/mcp", json=ASK, headers=HEADERS | {"Host": "evil.example"}
    )

    is_problem(response, 400, "foreign_host")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_there_are_no_sessions(service: Service, method: str) -> None:
    """Streams without a request and the end of sessions do not exist: 405."""
    response = await service.client.request(method, "/mcp", headers=HEADERS)

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{", 400, -32700), (b"[]", 400, -32600), (b'{"jsonrpc": "2.0", "id": 1}', 400, -32600)],
)
async def test_invalid_messages_are_refused(
    service: Service, body: bytes, status: int, code: int
) -> None:
    """Malformed messages are JSON-RPC errors with status 400."""
    response = await service.client.post("/mcp", content=body, headers=HEADERS)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_other_content_types_are_refused(service: Service) -> None:
    """A message must be JSON."""
    headers = HEADERS | {"Content-Type": "text/plain"}

    response = await service.client.post("/mcp", content=b"{}", headers=headers)

    is_problem(response, 422, "invalid_request")


async def test_an_idempotency_key_is_refused(service: Service) -> None:
    """It is not silently ignored."""
    response = await service.client.post(
        "/mcp", json=ASK, headers=HEADERS | {"Idempotency-Key": "k"}
    )

    is_problem(response, 422, "invalid_request")


async def test_large_messages_are_refused(serve: Serve) -> None:
    """A body is limited like that of a question."""
    service = await serve(prompt_characters_max=100)

    response = await service.client.post("/mcp", content=b" " * 70_000, headers=HEADERS)

    is_problem(response, 413, "too_large")


async def test_a_disconnect_stops_the_provider(serve: Serve, fake: ProviderFake) -> None:
    """A client that leaves during `ask` stops the call; there is one row, `client_gone`."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", drain_seconds=0)
    await service.client.post("/ai/upload", json=DOCUMENT)
    fake.next(Behaviour(hang_after="headers"))
    asking = asyncio.create_task(service.client.post("/mcp", json=ASK, headers=HEADERS))
    (call,) = await fake.wait_calls(1)

    asking.cancel()

    assert await fake.wait_ended(call) is Ending.ABORTED
    assert (await service.row())["status"] == "client_gone"


async def test_the_scope_of_a_key_limits_its_tools(serve: Serve) -> None:
    """A key needs the scope `documents` to search, and `ask` to ask."""
    service = await serve(auth="keys")
    results: dict[tuple[Scope, str], Any] = {}
    for scope in (Scope.ASK, Scope.DOCUMENTS):
        async with client(service, await make_key(service, "alice", scopes={scope})) as caller:
            for name, argument in (("ask", "question"), ("search", "query")):
                result = await call_tool(caller, name, **{argument: "Why?"})
                results[scope, name] = result.get("isError", False)

    assert results == {
        (Scope.ASK, "ask"): False,
        (Scope.ASK, "search"): True,
        (Scope.DOCUMENTS, "ask"): True,
        (Scope.DOCUMENTS, "search"): False,
    }
