"""Callers of several users, keys and models, whose answers end in every possible way."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.test_kill import build_providers
from tests.sse import collect

AT_ONCE = 16  # requests
UNPRICED = "a-model-without-a-price"
ENDLESS = "[[endless=true gap=0.005]]"
# Kinds of requests with their weights, and what the provider does for them.
KINDS = {
    "plain": (26, ""),
    "stream": (20, ""),
    "chat": (14, ""),
    "chat_stream": (12, ""),
    "keyed": (4, ""),
    "refused": (5, ""),  # no passage is relevant, because there are no documents
    "stopped": (3, ENDLESS),
    "left": (3, ENDLESS),
    "fallback": (4, ""),
    "unpriced": (3, ""),
    "plain cut": (1, "[[cut-after=3]]"),
    "stream cut": (2, "[[cut-after=3]]"),
    "stream without usage": (2, "[[usage=none]]"),
    "stream with late usage": (2, "[[usage-times=3]]"),
    "plain rejected": (1, "[[status=400]]"),
    "stream hanging": (1, "[[hang-after=0]]"),
}


def build_catalog(first: ProviderFake, second: ProviderFake) -> dict[str, Any]:
    """Two providers with a route through both, and a model without a price."""
    catalog = build_providers(first=first, second=second)
    for provider in catalog["providers"]:
        provider["idle_seconds"] = 0.5
    catalog["providers"][0]["models"].append({"name": UNPRICED})
    return catalog


@dataclass
class Traffic:
    """Sends requests. `keys`: of the users. `acknowledged`: prompts whose usage is the provider's.

    Prompts are unique; a client that retries with a key sends the same one again.
    """

    keys: list[str]
    first: ProviderFake
    choose: random.Random = field(default_factory=lambda: random.Random(11))
    acknowledged: list[str] = field(default_factory=list)
    sent: int = 0

    async def run(self, url: str, phase: str, count: int) -> None:
        """Send this number of requests, or fewer if the service ends before."""
        left = iter(range(count))

        async def send_on(key: str) -> None:
            async with httpx2.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {key}"}, verify=False, timeout=60
            ) as client:
                with suppress(httpx2.TransportError):
                    for _ in left:
                        await self._send_one(client, phase)

        callers = (send_on(self.keys[n % len(self.keys)]) for n in range(AT_ONCE))
        await asyncio.gather(*callers)

    async def _send_one(self, client: httpx2.AsyncClient, phase: str) -> None:
        names = list(KINDS)
        (kind,) = self.choose.choices(names, [KINDS[name][0] for name in names])
        self.sent += 1
        prompt = f"{phase} {self.sent} {KINDS[kind][1]}".strip()
        body: dict[str, Any] = {
            "prompt": prompt,
            "grounded": kind == "refused",
            "model": self.choose.choice(["chat", "model-first", "model-second"]),
        }
        if kind == "unpriced":
            body["model"] = UNPRICED
        elif kind == "fallback":
            body["model"] = "chat"
            self.first.next(Behaviour(status=503))
        send: dict[str, Callable[..., Awaitable[bool]]] = {
            "stream": _send_stream,
            "chat": _send_chat,
            "chat_stream": _send_chat,
            "keyed": _send_keyed,
            "stopped": _stop_answer,
            "left": _leave_stream,
        }
        function = send.get(kind.split(" ")[0]) or _send_plain
        acknowledged = await function(client, body, stream=kind == "chat_stream")
        if acknowledged and kind != "stream without usage":
            self.acknowledged.append(prompt)


async def _send_plain(client: httpx2.AsyncClient, body: dict[str, Any], **_: Any) -> bool:
    return (await client.post("/ai/test", json=body)).status_code == 200


async def _send_stream(client: httpx2.AsyncClient, body: dict[str, Any], **_: Any) -> bool:
    async with client.stream("POST", "/ai/stream", json=body) as response:
        if response.status_code != 200:
            return False
        events = await collect(response)
        return bool(events) and events[-1].name == "done"


async def _send_chat(client: httpx2.AsyncClient, body: dict[str, Any], *, stream: bool) -> bool:
    request = {
        "model": body["model"],
        "messages": [{"role": "user", "content": body["prompt"]}],
        "stream": stream,
    }
    response = await client.post("/v1/chat/completions", json=request)
    complete = "[DONE]" in response.text if stream else response.status_code == 200
    return response.status_code == 200 and complete


async def _send_keyed(client: httpx2.AsyncClient, body: dict[str, Any], **_: Any) -> bool:
    headers = {"Idempotency-Key": body["prompt"].replace(" ", "-")}
    responses = [await client.post("/ai/test", json=body, headers=headers) for _ in range(2)]
    return all(response.status_code == 200 for response in responses)


async def _stop_answer(client: httpx2.AsyncClient, body: dict[str, Any], **_: Any) -> bool:
    started = await client.post("/ai/answers", json=body)
    if started.status_code == 202:
        async with client.stream("GET", started.json()["events_url"]) as response:
            parts = response.aiter_bytes()
            await anext(parts, b"")
            await client.delete(f"/ai/answers/{started.json()['id']}")
            while await anext(parts, b""):
                pass
    return False


async def _leave_stream(client: httpx2.AsyncClient, body: dict[str, Any], **_: Any) -> bool:
    async with client.stream("POST", "/ai/stream", json=body) as response:
        parts = response.aiter_bytes()
        await anext(parts, b"")
        await anext(parts, b"")
    return False
