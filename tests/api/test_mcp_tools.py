"""The tools `search` and `ask` with the client of the package `mcp`."""

import re

import pytest
from mcp import MCPError

from service.core.ports import QuotaLimits
from tests.access import client, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, ProviderFake
from tests.mcp_clients import DOCUMENT, VERSION, call_tool, mcp_client
from tests.openai_clients import PRICES, check_row

QUESTION = "What is the zebra code?"


@pytest.fixture
async def priced(serve: Serve, fake: ProviderFake) -> Service:
    """A service with one document, whose model has a price."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", prices=PRICES)
    await service.client.post("/ai/upload", json=DOCUMENT)
    return service


@pytest.mark.parametrize(
    ("mode", "version"), [("auto", VERSION), (VERSION, VERSION), ("legacy", "2025-11-25")]
)
async def test_clients_of_each_revision_list_the_tools(
    service: Service, mode: str, version: str
) -> None:
    """Clients that discover, that know the revision, and that shake hands see both tools."""
    async with mcp_client(service, mode=mode) as caller:
        tools = (await caller.list_tools()).tools

        assert caller.protocol_version == version
    assert {tool.name: sorted(tool.input_schema["required"]) for tool in tools} == {
        "search": ["query"],
        "ask": ["question"],
    }


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_ask_answers_with_sources_and_one_row(
    priced: Service, fake: ProviderFake, mode: str
) -> None:
    """The answer cites sources with URLs; its row has the usage and cost of the provider."""
    fake.next(Behaviour(text="It is 4711 [1]."))
    async with mcp_client(priced, mode=mode) as caller:
        result = await caller.call_tool("ask", {"question": QUESTION})

    output, row = result.structured_content, await priced.row()
    assert not result.is_error
    assert (output["answer"], output["status"]) == ("It is 4711 [1].", "completed")
    assert output["id"] == row["id"]
    assert (output["total_tokens"], output["cost_usd"]) == (
        row["total_tokens"],
        row["estimated_cost"],
    )
    (source,) = output["sources"]
    document = (await priced.client.get(source["url"])).json()
    assert (source["n"], source["title"], document["title"]) == (1, "Zoo", "Zoo")
    assert source["url"] in result.content[0].text  # type: ignore[union-attr]  # it is a text
    assert (row["endpoint"], row["grounded"]) == ("/mcp", True)
    check_row(row, fake.calls[0])


async def test_search_returns_passages_and_writes_no_row(
    priced: Service, fake: ProviderFake
) -> None:
    """Passages have text, the sentence that matches, title and URL; no model is called."""
    async with mcp_client(priced) as caller:
        result = await caller.call_tool("search", {"query": QUESTION, "limit": 3})

    (passage,) = result.structured_content["passages"]
    assert result.structured_content["answerable"]
    assert passage["sentence"] == "The zebra code is 4711."
    assert (await priced.client.get(passage["url"])).json()["text"] == passage["text"]
    assert (fake.calls, await priced.rows()) == ([], [])


async def test_a_question_without_an_answer_costs_nothing(
    priced: Service, fake: ProviderFake
) -> None:
    """`ask` refuses with status `no_context`, which is no error, and calls no model."""
    result = await call_tool(priced.client, "ask", question="Who won the cup in 1974?")

    output = result["structuredContent"]
    assert (output["status"], output["sources"], output["cost_usd"]) == ("no_context", [], "0")
    assert not result.get("isError")
    assert (await priced.row())["status"] == "no_context"
    assert fake.calls == []


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("ask", {}, "question: Field required"),
        ("ask", {"question": " "}, "question:"),
        ("ask", {"question": "Why?", "prompt": "x"}, "prompt: Extra inputs are not permitted"),
        ("ask", {"question": "Why?", "model": "extractive", "documents": []}, "documents:"),
        ("search", {"query": "x", "limit": 51}, "limit:"),
        ("search", {"query": "x" * 200_000}, "Too large: the question is longer"),
    ],
)
async def test_wrong_arguments_are_errors_of_the_tool(
    service: Service, name: str, arguments: dict[str, object], text: str
) -> None:
    """The result names the argument, so that a model can correct it."""
    result = await call_tool(service.client, name, **arguments)

    assert result["isError"]
    assert text in result["content"][0]["text"]


async def test_a_tool_that_does_not_exist_is_an_error_of_the_protocol(service: Service) -> None:
    """The client gets the code of invalid parameters."""
    async with mcp_client(service) as caller:
        with pytest.raises(MCPError, match="there is no tool 'fly'"):
            await caller.call_tool("fly", {})


async def test_a_failure_of_the_provider_is_an_error_of_the_tool(
    priced: Service, fake: ProviderFake
) -> None:
    """The text says what failed, and `_meta` has the problem with the id of the row."""
    fake.next(Behaviour(status=401))

    result = await call_tool(priced.client, "ask", question=QUESTION)

    problem = result["_meta"]["kotae/problem"]
    row = await priced.row()
    assert result["isError"]
    assert problem["detail"] in result["content"][0]["text"]
    assert (problem["code"], problem["answer_id"]) == ("provider_refused", row["id"])
    assert row["status"] == "provider_error"


async def test_limits_apply_to_ask(serve: Serve, fake: ProviderFake) -> None:
    """A used-up limit is an error of the tool with the time until it is free; no call is made."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="fake-model")
    key = await make_key(service, "alice", limits=QuotaLimits(requests_per_minute=1))
    async with client(service, key) as caller:
        await caller.post("/ai/upload", json=DOCUMENT)
        first = await call_tool(caller, "ask", question=QUESTION)
        second = await call_tool(caller, "ask", question=QUESTION)

    problem = second["_meta"]["kotae/problem"]
    assert not first.get("isError")
    assert second["isError"]
    assert problem["code"] == "quota_exceeded"
    assert 0 < problem["retry_after"] <= 60
    assert len(fake.calls) == 1


async def test_users_see_their_own_documents(serve: Serve) -> None:
    """Neither tool shows a document, or a word of it, to another user."""
    service = await serve(auth="keys")
    alice, bob = await make_key(service, "alice"), await make_key(service, "bob")
    async with client(service, alice) as owner, client(service, bob) as other:
        await owner.post("/ai/upload", json=DOCUMENT)
        own = [
            await call_tool(owner, "ask", question=QUESTION),
            await call_tool(owner, "search", query=QUESTION),
        ]
        foreign = [
            await call_tool(other, "ask", question=QUESTION),
            await call_tool(other, "search", query=QUESTION),
        ]

    assert all(re.search("4711", str(result)) for result in own)
    assert not any(re.search("4711", str(result)) for result in foreign)
