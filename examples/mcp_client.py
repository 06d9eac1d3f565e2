"""Ask a question over the Model Context Protocol and print the answer with its sources."""

import asyncio
import os

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

URL = os.environ.get("MCP_URL", "http://127.0.0.1:8000/mcp")
HEADERS = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'any')}"}


async def main() -> None:
    """Call the tool `ask`."""
    async with (
        httpx2.AsyncClient(headers=HEADERS, timeout=120) as http_client,
        Client(streamable_http_client(URL, http_client=http_client)) as client,
    ):
        result = await client.call_tool("ask", {"question": "How long can I return a product?"})
        print(result.structured_content["answer"])
        for source in result.structured_content["sources"]:
            print(source["n"], source["title"], source["url"])


asyncio.run(main())
