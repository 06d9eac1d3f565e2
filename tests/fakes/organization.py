"""The usage and costs endpoints of an organization at OpenAI, over real HTTP, in small pages."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

ADMIN_KEY = "sk-admin-kotae"
DAY_SECONDS = 86_400


@dataclass
class Usage:
    """The usage of a model on a day; `usd`: its cost, as the API writes numbers."""

    day: date
    model: str
    prompt: int
    completion: int
    usd: str = "0"
    kind: str = "completions"


class OrganizationFake:
    """Reports usage. `page_days`: buckets of a page; `failures`: status of the next responses."""

    def __init__(self, usages: list[Usage], page_days: int = 2) -> None:
        self.usages, self.page_days = usages, page_days
        self.failures: list[int] = []
        self.requests: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request for each connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        self.requests.append(path)
        status, value = self._respond(path, head)
        body = json.dumps(value).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"retry-after-ms: 1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()

    def _respond(self, path: str, head: str) -> tuple[int, Any]:
        if f"authorization: bearer {ADMIN_KEY}" not in head.lower():
            return 401, {"error": {"message": "Incorrect API key provided"}}
        if self.failures:
            return self.failures.pop(0), {"error": {"message": "The fake refuses this"}}
        url = urlsplit(path)
        query = dict(parse_qsl(url.query))
        start = int(query.get("page", query["start_time"]))
        end = min(int(query["end_time"]), start + self.page_days * DAY_SECONDS)
        kind = url.path.rpartition("/")[2]
        has_more = end < int(query["end_time"])
        return 200, {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": at,
                    "end_time": at + DAY_SECONDS,
                    "results": list(self._list_results(kind, at)),
                }
                for at in range(start, end, DAY_SECONDS)
            ],
            "has_more": has_more,
            "next_page": str(end) if has_more else None,
        }

    def _list_results(self, kind: str, at: int) -> Iterator[dict[str, Any]]:
        for usage in self.usages:
            if usage.day != datetime.fromtimestamp(at, UTC).date():
                continue
            if kind == "costs":
                amount = {"value": float(usage.usd), "currency": "usd"}
                item = f"{usage.model}, input_tokens"
                yield {"object": "organization.costs.result", "amount": amount, "line_item": item}
            elif kind == usage.kind:
                yield {
                    "object": f"organization.usage.{kind}.result",
                    "model": usage.model,
                    "input_tokens": usage.prompt,
                    "output_tokens": usage.completion,
                    "num_model_requests": 1,
                }
