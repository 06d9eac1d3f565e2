"""The contract of `Peers`, for one process and for replicas."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from service.core.encoding import create_id, utc_now
from service.core.errors import OwnerUnavailable
from service.core.ports import Peer, PeerRequest, Peers
from service.core.replicas.peers import HttpPeers, NoPeers
from service.core.replicas.signatures import HEADER, PeerVerifier, select_headers
from service.core.replicas.slots import Replica, ReplicaState
from service.http_server.connections import HttpLimits
from service.http_server.listener import Listener
from tests.proxies import find_free_port

KEY = b"k" * 32
REQUEST = PeerRequest(method="GET", target="/x", headers={"accept": "*/*"}, principal=b"{}")
Respond = Callable[[Scope, Receive, Send], Awaitable[None]]
Listen = Callable[[Respond], Awaitable[str]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts listeners of other replicas, and returns their addresses."""
    listeners: list[Listener] = []

    async def start(respond: Respond) -> str:
        listener = Listener("127.0.0.1:0", HttpLimits())
        await listener.start(respond)
        listeners.append(listener)
        return listener.address

    yield start
    for listener in listeners:
        await listener.close(1)


def create_peers(replicas: dict[int, Replica] | None = None, **seconds: float) -> HttpPeers:
    """The replica with slot 0 of these."""
    return HttpPeers(0, [KEY], lambda: replicas or {}, **{"patient_seconds": 5} | seconds)


def build_replica(slot: int, state: ReplicaState, *, is_alive: bool) -> Replica:
    """A replica with an address."""
    return Replica(slot=slot, address=f"10.0.0.{slot}:8100", state=state, is_alive=is_alive)


@pytest.mark.parametrize("peers", [NoPeers(), create_peers()])
async def test_own_and_unknown_answers_have_no_other_owner(peers: Peers) -> None:
    """Also ids of earlier versions, which contain no slot, and other texts."""
    before = utc_now() - timedelta(seconds=60)
    for answer_id in (create_id(utc_now(), 0), create_id(before, 7), "x", "x" * 36):
        assert peers.find_owner(answer_id) is None
        peers.require_written(answer_id)
    await peers.aclose()


@pytest.mark.parametrize("peers", [NoPeers(), create_peers()])
async def test_a_replica_that_does_not_respond_is_unavailable(peers: Peers) -> None:
    """Without an address, or where nobody listens."""
    for address in ("", f"127.0.0.1:{find_free_port()}"):
        with pytest.raises(OwnerUnavailable):
            await peers.send(Peer(1, address), REQUEST)
    await peers.aclose()


async def test_the_owner_is_found_by_the_slot_in_an_id() -> None:
    """One without a lease has no address. Its rows are awaited until it has left or is lost."""
    states = {
        1: build_replica(1, ReplicaState.SERVING, is_alive=True),
        2: build_replica(2, ReplicaState.SERVING, is_alive=False),
        3: build_replica(3, ReplicaState.LEFT, is_alive=False),
        4: build_replica(4, ReplicaState.LOST, is_alive=False),
    }
    peers = create_peers(states)
    ids = {slot: create_id(utc_now(), slot) for slot in states}
    owners = [peers.find_owner(answer_id) for answer_id in ids.values()]

    assert [owner and owner.address for owner in owners] == ["10.0.0.1:8100", "", "", ""]
    for slot in (1, 2):
        with pytest.raises(OwnerUnavailable):
            peers.require_written(ids[slot])
    for slot in (3, 4):
        peers.require_written(ids[slot])


async def test_a_recent_answer_of_an_unknown_replica_is_awaited() -> None:
    """The replica may have started since the table was read."""
    with pytest.raises(OwnerUnavailable):
        create_peers().require_written(create_id(utc_now(), 7))


async def test_a_signed_request_reaches_the_owner(listen: Listen) -> None:
    """With its body; the response has the status, the headers and the bytes of the owner."""
    received: list[tuple[bytes | None, bytes]] = []
    request = PeerRequest(
        method="POST", target="/x?y=%20", headers={"content-type": "a/b"}, body=b"question"
    )

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        signed = msgspec.structs.replace(request, headers=select_headers(headers))
        head = PeerVerifier(1, [KEY]).verify(headers[HEADER], signed)
        head.check_body(message["body"])
        received.append((head.principal, message["body"]))
        await send({"type": "http.response.start", "status": 418, "headers": [(b"x-answer", b"1")]})
        for part in (b"a", b"b" * 100_000):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    peers, address = create_peers(), await listen(respond)
    for _ in range(2):
        response = await peers.send(Peer(1, address), request)
        body = b""
        while part := await response.read():
            body += part
        await response.close()
        assert (response.status, response.headers[b"x-answer"]) == (418, b"1")
        assert body == b"a" + b"b" * 100_000
    await peers.aclose()

    assert received == [(None, b"question")] * 2


async def test_all_replicas_that_respond_are_asked(listen: Listen) -> None:
    """Bodies are collected from those with a lease; a refusal of one is an error."""
    statuses = {"/ok": 200, "/refused": 503}

    async def respond(scope: Scope, _: Receive, send: Send) -> None:
        status = statuses[scope["path"]]
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    replicas = {
        slot: Replica(slot=slot, address=address, state=ReplicaState.SERVING, is_alive=slot != 3)
        for slot, address in enumerate(
            [f"127.0.0.1:{find_free_port()}", *[await listen(respond) for _ in range(3)]]
        )
    } | {4: build_replica(4, ReplicaState.LEFT, is_alive=False)}
    peers = create_peers(replicas)
    bodies = await peers.ask_all(PeerRequest(method="GET", target="/ok", headers={}))
    with pytest.raises(OwnerUnavailable):
        await peers.ask_all(PeerRequest(method="GET", target="/refused", headers={}))
    await peers.aclose()

    assert bodies == [b"here"] * 2
    assert await NoPeers().ask_all(REQUEST) == []


async def test_closing_a_response_disconnects_the_owner(listen: Listen) -> None:
    """The owner learns that nobody reads any longer."""
    disconnected = asyncio.Event()

    async def respond(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    peers, address = create_peers(), await listen(respond)
    response = await peers.send(Peer(1, address), REQUEST)
    await response.read()
    await response.close()
    async with asyncio.timeout(5):
        await disconnected.wait()
    await peers.aclose()


async def test_an_owner_that_ends_early_is_unavailable(listen: Listen) -> None:
    """Before the head and within the body; what was received before is returned."""

    async def respond(scope: Scope, _: Receive, send: Send) -> None:
        if scope["path"] == "/x":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(0.05)
        scope["extensions"]["kotae.drop"]["now"]()

    peers, address = create_peers(), await listen(respond)
    response = await peers.send(Peer(1, address), REQUEST)
    first = await response.read()
    with pytest.raises(OwnerUnavailable):
        await response.read()
    await response.close()
    with pytest.raises(OwnerUnavailable):
        await peers.send(Peer(1, address), PeerRequest(method="GET", target="/y", headers={}))
    await peers.aclose()

    assert first == b"a"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_owner_that_hangs_is_unavailable(listen: Listen, method: str) -> None:
    """Before the head, although the request may wait for minutes, and within the body."""
    ended = asyncio.Event()

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/head":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await ended.wait()

    peers = create_peers(patient_seconds=600, head_seconds=0.05, silence_seconds=0.05)
    address = await listen(respond)
    async with asyncio.timeout(20):
        with pytest.raises(OwnerUnavailable):
            await peers.send(Peer(1, address), msgspec.structs.replace(REQUEST, method=method))
        response = await peers.send(
            Peer(1, address), msgspec.structs.replace(REQUEST, method=method, target="/head")
        )
        assert await response.read() == b"a"
        with pytest.raises(OwnerUnavailable):
            await response.read()
    await response.close()
    ended.set()
    await peers.aclose()


async def test_an_answer_is_awaited_while_its_owner_is_alive(listen: Listen) -> None:
    """The response to a request with a body begins after several signs of life."""
    signs, enough = 0, asyncio.Event()

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal signs
        if scope["path"] == "/peer/alive":
            signs += 1
            if signs == 3:
                enough.set()
        else:
            await enough.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    peers, address = create_peers(head_seconds=0.05, patient_seconds=60), await listen(respond)
    response = await peers.send(Peer(1, address), msgspec.structs.replace(REQUEST, method="POST"))
    await response.close()
    await peers.aclose()

    assert (response.status, signs) == (204, 3)
