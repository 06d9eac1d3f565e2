"""Messages of the Model Context Protocol, with and without its client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.access import bearer
from tests.conftest import Service

VERSION = "2026-07-28"
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": VERSION,
    "Mcp-Method": "tools/call",
    "Mcp-Name": "ask",
}
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}
DOCUMENT = {"title": "Zoo", "text": "The zebra code is 4711. It changes every year."}


def build_call(name: str, **arguments: Any) -> dict[str, Any]:
    """The message of a tool call."""
    params = {"name": name, "arguments": arguments, "_meta": META}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def call_tool(caller: httpx2.AsyncClient, name: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool without the package's client."""
    headers = HEADERS | {"Mcp-Name": name}
    response = await caller.post("/mcp", json=build_call(name, **arguments), headers=headers)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


@asynccontextmanager
async def mcp_client(
    service: Service, key: Any = None, mode: str = "auto"
) -> AsyncIterator[Client]:
    """The package's client of a service."""
    async with httpx2.AsyncClient(headers=bearer(key), verify=False, timeout=20) as http_client:
        transport = streamable_http_client(f"{service.url}/mcp", http_client=http_client)
        async with Client(transport, mode=mode) as client:
            yield client
