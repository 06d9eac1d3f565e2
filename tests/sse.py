"""A parser of event streams for tests, which follows the specification.

It is written for the tests on purpose: it is independent of the libraries of other tests and of the
command line, keeps comments and `retry`, and accepts bytes in pieces of any size.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx2


@dataclass(frozen=True)
class Event:
    name: str
    data: str
    last_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Parser:
    """Parses bytes into events; stores `retry` and `comments`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []
        self._name = ""
        self._last_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        self._buffer += data
        *lines, self._buffer = re.split(rb"\r\n|\n|\r(?!$)", self._buffer)
        return [event for line in lines if (event := self._line(line.decode()))]

    def _line(self, line: str) -> Event | None:
        if not line:
            name, data, self._name, self._data = self._name, self._data, "", []
            return Event(name, "\n".join(data), self._last_id) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            self.comments.append(value)
        elif field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._last_id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)
        return None


async def events(response: httpx2.Response) -> AsyncGenerator[Event, None]:
    """Yield the events of a response as they arrive."""
    parser = Parser()
    async for data in response.aiter_raw():
        for event in parser.feed(data):
            yield event


async def collect(response: httpx2.Response) -> list[Event]:
    """Return all events of a response."""
    return [event async for event in events(response)]


def text_of(events: list[Event]) -> str:
    """Return the text of the deltas."""
    return "".join(event.json["delta"] for event in events if event.name == "")
