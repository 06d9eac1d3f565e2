"""Kills and faults of requests to `/v1`: one row for each, and accounts that agree."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.provider import Behaviour, ProviderFake
from tests.faults.oracle import EMBEDDINGS, check, read_log
from tests.faults.scene import settings_for, stop_service, wait_drained
from tests.faults.test_kill import Load
from tests.process import ServiceProcess, kotae, serving

KINDS = ("chat", "chat stream", "response", "response stream", "background", "embedding")
FIRST, RETRY = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


def build_request(kind: str, prompt: str) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request."""
    body: dict[str, Any] = {"model": "gpt-4o-mini"}
    if kind == "embedding":
        return EMBEDDINGS, body | {"input": prompt}
    if kind.endswith("stream"):
        body["stream"] = True
    if kind.startswith("chat"):
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
    return "/v1/responses", body | {"input": prompt, "background": kind == "background"}


async def send(
    client: httpx2.AsyncClient, kind: str, prompt: str, headers: dict[str, str] | None = None
) -> bool:
    """Send a request; return whether a complete answer arrived."""
    path, body = build_request(kind, prompt)
    response = await client.post(path, json=body, headers=headers or FIRST)
    if kind == "background" and response.status_code == 200:
        path = f"{path}/{response.json()['id']}?stream=true"
        response = await client.get(path)  # until its end
    if kind == "chat stream":
        return response.text.endswith("data: [DONE]\n\n")
    if kind in {"response stream", "background"}:
        return '"type":"response.completed"' in response.text
    return response.status_code == 200


class OpenAILoad(Load):
    """Callers that send requests of each kind. `embedded`: the number of acknowledged vectors."""

    embedded = 0

    async def _ask_on(self, client: httpx2.AsyncClient) -> None:
        with suppress(httpx2.TransportError):
            while True:
                self._number += 1
                prompt, kind = f"question {self._number}", KINDS[self._number % len(KINDS)]
                if not await send(client, kind, prompt):
                    continue
                if kind == "embedding":
                    self.embedded += 1
                else:
                    self.acknowledged.append(prompt)


async def check_audit(folder: Path) -> None:
    """The accounts agree."""
    status, output, errors = await kotae("audit", data_dir=folder)
    assert (status, "all agrees" in output) == (0, True), output + errors


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(260)]),
        pytest.param(100, marks=[pytest.mark.nightly, pytest.mark.timeout(4060)]),
    ],
)
async def test_no_row_is_lost_or_duplicated(tmp_path: Path, fake: ProviderFake, kills: int) -> None:
    """After kills at random moments there is one row for every request of each kind."""
    choose = random.Random(7)
    fake.default = Behaviour(chunks=6, gap=0.004)
    load, settings = OpenAILoad(), settings_for(fake)
    for _ in range(kills):
        async with serving(tmp_path, **settings) as service:
            callers = asyncio.create_task(load.run(service))
            await load.wait_acknowledged(choose.randint(1, 40))
            await asyncio.sleep(choose.uniform(0, 0.02))  # a random moment of an answer
            service.signal(signal.SIGKILL)
            await asyncio.gather(service.wait(), callers)
    async with serving(tmp_path, **settings) as service:
        await wait_drained(service)
        await stop_service(service, fake)

    rows = check(tmp_path, fake.calls, load.acknowledged)
    vectors = Counter(row["usage_source"] for row in rows if row["endpoint"] == EMBEDDINGS)
    assert vectors.total() >= len(fake.embedded)
    assert vectors["provider"] >= load.embedded > 0
    assert {row["status"] for row in rows} == {"completed", "interrupted"}
    await check_audit(tmp_path)


@pytest.mark.slow
async def test_killed_answers_are_interrupted(tmp_path: Path, fake: ProviderFake) -> None:
    """Their rows say so after the restart, and a client's retry is a question with its own row."""
    hold, settings, kinds = asyncio.Event(), settings_for(fake), KINDS[:-1]
    fake.default = Behaviour(hold=hold, hold_after="headers")
    async with serving(tmp_path, **settings) as service:
        asking = [asyncio.create_task(send(service.client, kind, kind)) for kind in kinds]
        await fake.wait_calls(len(kinds))
        service.signal(signal.SIGKILL)
        await service.wait()
        answered = await asyncio.gather(*asking, return_exceptions=True)
    hold.set()
    async with serving(tmp_path, **settings) as service:
        await wait_drained(service)
        (background,) = [row for row in read_log(tmp_path) if row["prompt"] == "background"]
        path = f"/v1/responses/resp_{background['id']}"
        response = (await service.client.get(path)).json()
        for kind in kinds:
            assert await send(service.client, kind, kind, RETRY)
        await stop_service(service, fake)

    assert True not in answered
    assert (response["status"], response["usage"]) == ("failed", None)
    rows = sorted((row["prompt"], row["status"], row["usage_source"]) for row in read_log(tmp_path))
    ends = (("completed", "provider"), ("interrupted", "unknown"))
    assert rows == [(kind, *end) for kind in sorted(kinds) for end in ends]
    assert len(fake.calls) == len(rows)
    await check_audit(tmp_path)


@pytest.mark.slow
async def test_an_ended_background_response_survives_a_kill(
    tmp_path: Path, fake: ProviderFake
) -> None:
    """After the restart it is read whole, and streamed from any event."""
    settings = settings_for(fake)
    path, body = build_request("background", "Why?")
    async with serving(tmp_path, **settings) as service:
        created = (await service.client.post(path, json=body)).json()
        stream = f"/v1/responses/{created['id']}?stream=true"
        before = (await service.client.get(stream)).text
        service.signal(signal.SIGKILL)
        await service.wait()
    async with serving(tmp_path, **settings) as service:
        response = (await service.client.get(f"/v1/responses/{created['id']}")).json()
        rest = (await service.client.get(f"{stream}&starting_after=5")).text
        await stop_service(service, fake)

    assert response["output"][0]["content"][0]["text"] == fake.calls[0].text
    assert rest.splitlines()[-3:] == before.splitlines()[-3:]
    assert len(fake.calls) == 1
    check(tmp_path, fake.calls, ["Why?"])
    await check_audit(tmp_path)


FAULTS: dict[str, Behaviour] = {
    "refused": Behaviour(status=401),
    "rejected": Behaviour(status=400),
    "cut": Behaviour(cut_after=3),
    "error": Behaviour(error_after=3),
    "malformed": Behaviour(malformed_after=2),
    "left": Behaviour(hang_after=2),
}


@pytest.mark.slow
async def test_every_fault_has_one_row(tmp_path: Path, fake: ProviderFake) -> None:
    """Refusals, broken streams and clients that leave, on each route: one row, accounts agree."""
    sent: list[str] = []
    async with serving(tmp_path, **settings_for(fake)) as service:
        for kind in KINDS:
            for fault, behaviour in FAULTS.items():
                prompt = f"{kind} {fault}"
                if kind == "embedding":
                    if fault in {"refused", "rejected"}:
                        fake.embedding_statuses.append(behaviour.status)
                        assert not await send(service.client, kind, prompt)
                    continue
                if (kind, fault) == ("background", "left"):  # it needs no reader
                    continue
                if fault == "error" and not kind.endswith("stream"):  # an event of streams
                    continue
                if fault == "left" and "stream" not in kind:
                    behaviour = Behaviour(hang_after="headers")  # noqa: PLW2901
                sent.append(prompt)
                fake.next(behaviour)
                await send_and_leave(service, fake, kind, prompt, leaves=fault == "left")
        await wait_drained(service)
        await stop_service(service, fake)

    rows = check(tmp_path, fake.calls, [])
    answers = [row["prompt"] for row in rows if row["endpoint"] != EMBEDDINGS]
    assert sorted(answers) == sorted(sent)
    assert len(rows) == len(sent) + 2
    assert all(row["status"] != "completed" for row in rows)
    await check_audit(tmp_path)


async def send_and_leave(
    service: ServiceProcess, fake: ProviderFake, kind: str, prompt: str, *, leaves: bool
) -> None:
    """Send a request that fails, or disconnect after the provider was called."""
    calls = len(fake.calls)
    asking = asyncio.create_task(send(service.client, kind, prompt))
    await fake.wait_calls(calls + 1)
    if not leaves:
        assert not await asking
        return
    asking.cancel()
    await fake.wait_ended(fake.calls[calls])
