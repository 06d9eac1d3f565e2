"""Runs the cases of a client: reads a name from each line, prints the result as a line of JSON."""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

WEATHER = {"city": "Paris"}


def serve(cases: Mapping[str, Callable[[], Any]]) -> None:
    """Serve until the input ends."""
    asyncio.run(_serve(cases))


async def _serve(cases: Mapping[str, Callable[[], Any]]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            result = cases[line.strip()]()
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:  # noqa: BLE001 - the test compares it
            cause: Any = error
            while cause is not None and not hasattr(cause, "status_code"):
                cause = getattr(cause, "response", cause.__cause__)
            result = {
                "error": type(error).__name__,
                "message": f"{error} {getattr(cause, 'text', '')}",
                "status": getattr(cause, "status_code", None),
            }
        print(json.dumps(result), flush=True)
