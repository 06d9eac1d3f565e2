"""HTTP/1.1 over raw sockets: refusals, pipelining, deadlines, and the end of connections."""

import asyncio
import gc
import json
from dataclasses import replace

import pytest

from service.http_server.connections import HttpLimits
from service.http_server.exchange import HttpExchange
from service.http_server.protocol import HttpProtocol
from tests.conftest import Serve, Service
from tests.fakes.provider import Behaviour, Ending, ProviderFake
from tests.http_server.raw import RawClient, talk

HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST
ASK = json.dumps({"prompt": "Why?", "grounded": False}).encode()
KEY = "0123456789abcdef0123456789abcdef"
LIMITS = HttpLimits()


def post(path: bytes = b"/ai/test", body: bytes = ASK, *fields: bytes) -> bytes:
    """Return a request with a JSON body."""
    head = b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\n" % (path, HOST)
    length = b"Content-Length: %d\r\n" % len(body)
    return head + length + b"".join(b"%b\r\n" % field for field in fields) + b"\r\n" + body


def chunked(
    *chunks: bytes, path: bytes = b"/ai/test", end: bytes = b"0\r\n\r\n", fields: bytes = b""
) -> bytes:
    """Return a request with a JSON body in chunks."""
    head = (
        b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        % (path, HOST)
    )
    return (
        head
        + fields
        + b"\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        + end
    )


MALFORMED = {
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "url of another host": b"GET http://evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "url of another port": b"GET http://localhost:1/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "url with credentials": b"GET http://x@localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "url of another scheme": b"GET ftp://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "bare carriage returns": b"GET / HTTP/1.1\rHost: localhost\r\r",
    "folded header": LIVE + b"X: a\r\n b\r\n\r\n",
    "space before colon": LIVE + b"X : a\r\n\r\n",
    "no colon": LIVE + b"X\r\n\r\n",
    "NUL in a header": LIVE + b"X: a\0b\r\n\r\n",
    "leading space": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "length and chunks": chunked(ASK, fields=b"Content-Length: 5\r\n"),
    "chunks and length": post(b"/ai/test", ASK, b"Transfer-Encoding: chunked"),
    "two lengths": post(b"/ai/test", ASK, b"Content-Length: 5"),
    "list of lengths": b"POST /ai/test HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": b"POST /ai/test HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc",
    "negative length": b"POST /ai/test HTTP/1.1\r\n" + HOST + b"Content-Length: -3\r\n\r\nabc",
    "huge length": b"POST /ai/test HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 99999999999999999999\r\n\r\n",
    "unknown transfer encoding": b"POST /ai/test HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks not last": b"POST /ai/test HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /ai/test HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": chunked(ASK, fields=b"Transfer-Encoding: chunked\r\n"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in the request line": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "unknown method": b"STEAL / HTTP/1.1\r\n" + HOST + b"\r\n",
    "tunnel": b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
}
BAD_CHUNKS = {
    "huge chunk size": b"fffffffffffffffff\r\n",
    "chunk size in C notation": b"0x1\r\nx\r\n",
    "negative chunk size": b"-1\r\nx\r\n",
    "chunk without its end": b"1\r\nxy\r\n",
    "bare line feeds": b"1\nx\n0\n\n",
}


@pytest.fixture
async def keyed(serve: Serve, fake: ProviderFake) -> Service:
    """A service that requires credentials."""
    return await serve(auth="keys", secret=KEY, openai_base_url=fake.base_url, model="fake-model")


async def codes_of(service: Service, requests: dict[str, bytes]) -> dict[str, list[object]]:
    """Return status, code and `Connection` of the only response to each request, by name."""
    results: dict[str, list[object]] = {}
    for name, request in requests.items():
        replies = await talk(service, request + LIVE + b"\r\n")
        results[name] = [
            (reply.status, reply.json()["code"], reply.headers["connection"]) for reply in replies
        ]
    return results


async def test_malformed_requests_are_refused(service: Service) -> None:
    """A request that is not HTTP/1.1 or is ambiguous gets a problem and ends the connection."""
    results = await codes_of(service, MALFORMED)

    assert results == {name: [(400, "malformed_request", "close")] for name in MALFORMED}


async def test_malformed_chunks_are_refused(service: Service) -> None:
    """A body that cannot be delimited gets a problem and ends the connection."""
    results = await codes_of(
        service, {name: chunked(end=chunk) for name, chunk in BAD_CHUNKS.items()}
    )

    assert results == {name: [(400, "malformed_request", "close")] for name in BAD_CHUNKS}


async def test_a_refusal_is_a_problem(service: Service) -> None:
    """A refusal by the server has the same problem and headers as one by a route."""
    (reply,) = await talk(service, MALFORMED["two hosts"])

    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == reply.json()["request_id"]
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "target", [b"http://localhost/health/live", b"http://LOCALHOST:80/health/live"]
)
async def test_a_url_of_the_same_host_is_served(service: Service, target: bytes) -> None:
    """The absolute form of a target is allowed if it agrees with the Host header."""
    (reply,) = await talk(service, b"GET " + target + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")

    assert reply.status == 200


def padded(path_bytes: int = 0, headers: int = 0, value_bytes: int = 0) -> bytes:
    """Return a request with a long URL, many headers, or a long header.

    `Host` and `Connection` are two of the headers.
    """
    head = b"GET /health/live?%b HTTP/1.1\r\n%b%b" % (b"a" * path_bytes, HOST, CLOSE)
    return (
        head
        + b"x: y\r\n" * headers
        + (b"z: %b\r\n" % (b"a" * value_bytes) if value_bytes else b"")
        + b"\r\n"
    )


URL_BYTES = LIMITS.url_bytes_max - len("/health/live?")
HEAD_BYTES = LIMITS.head_bytes_max - len(padded()) - len("z: \r\n")


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (padded(path_bytes=URL_BYTES), 200),
        (padded(path_bytes=URL_BYTES + 1), 414),
        (padded(headers=LIMITS.headers_max - 2), 200),
        (padded(headers=LIMITS.headers_max - 1), 431),
        (padded(value_bytes=HEAD_BYTES), 200),
        (padded(value_bytes=HEAD_BYTES + 1), 431),
    ],
    ids=["url", "longer url", "headers", "more headers", "head", "longer head"],
)  # fmt: skip
async def test_limits_of_a_head_are_exact(
    service: Service, request_: bytes, status: int, size: int
) -> None:
    """A head of the maximum size is served and a larger one is not, for any segmentation."""
    pieces = [request_[begin : begin + size] for begin in range(0, len(request_), size)]
    (reply,) = await talk(service, *pieces)

    assert reply.status == status


async def test_white_space_around_a_value_is_not_part_of_it(service: Service) -> None:
    """Spaces and tabs before and after the value of a header are removed."""
    fields = b"Host:\tlocalhost \r\nX-Request-ID: \t abc \t \r\n" + CLOSE
    (reply,) = await talk(service, b"GET /health/live HTTP/1.1\r\n" + fields + b"\r\n")

    assert (reply.status, reply.headers["x-request-id"]) == (200, "abc")


async def test_trailers_are_ignored(keyed: Service, fake: ProviderFake) -> None:
    """A credential or a host in a trailer has no effect."""
    key = b"Authorization: Bearer %b\r\n" % KEY.encode()
    trailers = b"0\r\n" + key + b"Host: evil.test\r\n\r\n"
    (refused,) = await talk(keyed, chunked(ASK, end=trailers, fields=CLOSE))
    (served,) = await talk(keyed, chunked(ASK, end=trailers, fields=key + CLOSE))

    assert (refused.status, served.status) == (401, 200)


async def test_small_chunks_are_served(service: Service) -> None:
    """A body in chunks of one byte, with short extensions, is a body like any other."""
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in ASK)
    (reply,) = await talk(service, chunked(end=chunks + b"0\r\n\r\n", fields=CLOSE))

    assert reply.status == 200


@pytest.mark.parametrize(
    "end", [b"1;" + b"a" * 50_000 + b"\r\n", b"0\r\n" + b"a: b\r\n" * 8000 + b"\r\n"]
)
async def test_framing_is_bounded(service: Service, end: bytes) -> None:
    """Chunk extensions and trailers that are larger than a head may be are refused."""
    (reply,) = await talk(service, chunked(end=end))

    assert (reply.status, reply.json()["code"]) == (431, "head_too_large")


async def test_credentials_are_checked_before_the_body(keyed: Service) -> None:
    """Without a credential the response is 401 before the body, and no `100 Continue`."""
    routes = [
        b"POST /ai/test",
        b"POST /ai/stream",
        b"POST /ai/answers",
        b"POST /ai/upload",
        b"POST /ai/keys",
        b"PUT /ai/plans/x",
    ]
    fields = (
        HOST
        + b"Content-Type: application/json\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    )
    replies = [await talk(keyed, route + b" HTTP/1.1\r\n" + fields) for route in routes]

    assert [[reply.status for reply in responses] for responses in replies] == [[401]] * len(routes)


async def test_expect_is_answered(service: Service) -> None:
    """A client that waits for `100 Continue` gets it, then its answer."""
    client = await RawClient.connect(service)
    await client.send(
        post(b"/ai/test", b"", b"Expect: 100-continue").replace(
            b"Content-Length: 0", b"Content-Length: %d" % len(ASK)
        )
    )
    interim = await client.receive()
    await client.send(ASK)
    final = await client.receive()
    await client.close()

    assert (interim.status, final.status) == (100, 200)


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_a_refused_body_does_not_reset_the_connection(keyed: Service, size: int) -> None:
    """A client that sends all of a large body before it reads still gets the response."""
    client = await RawClient.connect(keyed)
    await client.send(post(b"/ai/upload", b"x" * size))
    reply = await client.receive()
    await client.close()

    assert reply.status == 401


async def test_an_unread_body_is_not_a_request(service: Service) -> None:
    """Data after a request whose body was not read is never parsed (request smuggling)."""
    smuggled = b"GET /ai/logs HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"GET /health/live HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n"
    client = await RawClient.connect(service)
    await client.send(head % len(smuggled))
    first = await client.receive()
    await client.send(smuggled)

    assert first.headers["connection"] == "close"
    assert await client.closed()
    await client.close()


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    """Pipelined requests up to the limit are answered in order."""
    paths = [b"/health/live", b"/nope", b"/ai/answers/x", b"/health/ready"] * 4
    requests = b"".join(b"GET %b HTTP/1.1\r\n%b\r\n" % (path, HOST) for path in paths)
    client = await RawClient.connect(service)
    await client.send(requests)
    replies = [await client.receive() for _ in paths]
    await client.close()

    assert [reply.status for reply in replies] == [200, 404, 404, 200] * 4


async def test_more_pipelined_requests_are_not_answered(service: Service) -> None:
    """Requests above the limit get no response; the connection is closed after the others."""
    replies = await talk(service, (LIVE + b"\r\n") * 100)

    assert [reply.status for reply in replies] == [200] * LIMITS.pipelined_max
    assert replies[-1].headers["connection"] == "close"


async def test_a_disconnect_behind_a_pipelined_request_is_detected(
    service: Service, fake: ProviderFake
) -> None:
    """A request behind a stream does not hide a disconnect: the provider is stopped."""
    fake.next(Behaviour(hang_after=2))
    client = await RawClient.connect(service)
    await client.send(post(b"/ai/stream") + LIVE + b"\r\n")
    (call,) = await fake.wait_calls(1)
    await fake.wait_chunks(call, 2)
    await client.close()
    await fake.wait_idle()

    assert call.ended is Ending.ABORTED


@pytest.mark.parametrize("request_", [post(), chunked(ASK[:5], ASK[5:])], ids=["length", "chunks"])
async def test_an_upgrade_is_ignored(service: Service, request_: bytes) -> None:
    """A request that offers HTTP/2, like Java's, is answered; its body and later data are read."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    request_ = request_.replace(HOST, HOST + offer)
    replies = await talk(service, request_ + LIVE + offer + b"\r\n" + LIVE + CLOSE + b"\r\n")

    assert [reply.status for reply in replies] == [200, 200, 200]


async def test_a_response_to_http_1_0_ends_with_the_connection(service: Service) -> None:
    """HTTP/1.0 has no chunks."""
    (reply,) = await talk(service, post(b"/ai/stream").replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert reply.body.rstrip().splitlines()[-1].startswith(b"data: ")


async def test_a_slow_head_is_refused(serve: Serve) -> None:
    """An incomplete head gets 408, although bytes of it continue to arrive."""
    service = await serve(http_limits=replace(LIMITS, head_seconds=0.3))
    client = await RawClient.connect(service)

    async def drip() -> None:
        for byte in LIVE + b"X: " + b"a" * 1000:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    (reply,) = await client.receive_all()
    dripping.cancel()
    await client.close()

    assert (reply.status, reply.json()["code"]) == (408, "request_timeout")


async def test_silent_connections_are_closed(serve: Serve) -> None:
    """A connection without a request, or without another one, is closed without a response."""
    service = await serve(http_limits=replace(LIMITS, head_seconds=0.2, idle_seconds=0.2))
    silent, served = await RawClient.connect(service), await RawClient.connect(service)
    await served.send(LIVE + b"\r\n")
    await served.receive()

    assert await silent.closed()
    assert await served.closed()
    await silent.close()
    await served.close()


@pytest.mark.slow
async def test_a_body_that_does_not_come_is_refused(serve: Serve) -> None:
    """A body of which no more data arrives gets 408."""
    service = await serve(http_limits=replace(LIMITS, body_seconds=0.3))
    replies = [
        await talk(service, post(path)[:-1]) for path in (b"/ai/test", b"/ai/upload", b"/ai/keys")
    ]

    assert [(reply.status, reply.json()["code"]) for (reply,) in replies] == [
        (408, "request_timeout")
    ] * 3


async def test_a_body_that_comes_too_slowly_is_refused(serve: Serve) -> None:
    """A body that arrives byte by byte gets 408, although it is never silent for long."""
    service = await serve(http_limits=replace(LIMITS, slow_body_seconds=0.3))
    client = await RawClient.connect(service)
    await client.send(post(b"/ai/test", b" " * 10_000)[:-10_000])

    async def drip() -> None:
        for _ in range(1000):
            await client.send(b" ")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    (reply,) = await client.receive_all()
    dripping.cancel()
    await client.close()

    assert reply.status == 408


async def test_too_many_connections_drop_idle_ones(serve: Serve) -> None:
    """A new connection is served despite many idle ones; the oldest of them is closed."""
    service = await serve(http_limits=replace(LIMITS, connections_max=5, connections_reserved=1))
    idle = [await RawClient.connect(service) for _ in range(20)]
    (reply,) = await talk(service, LIVE + CLOSE + b"\r\n")

    assert reply.status == 200
    assert await idle[0].closed()
    assert len(service.server.connections) <= 6
    for client in idle:
        await client.close()


async def test_health_checks_are_served_with_all_connections_busy(
    serve: Serve, fake: ProviderFake
) -> None:
    """With all connections busy, requests get 503, health checks 200, and streams continue."""
    limits = replace(LIMITS, connections_max=3, connections_reserved=2)
    service = await serve(http_limits=limits, openai_base_url=fake.base_url, model="fake-model")
    fake.default = Behaviour(hang_after=1)
    streams = [await RawClient.connect(service) for _ in range(3)]
    for client in streams:
        await client.send(post(b"/ai/stream"))
    await fake.wait_calls(3)
    (refused,) = await talk(service, post(b"/ai/test", ASK))
    (live,) = await talk(service, LIVE + CLOSE + b"\r\n")

    assert (refused.status, refused.json()["code"], "retry-after" in refused.headers) == (
        503,
        "overloaded",
        True,
    )
    assert live.status == 200
    assert service.services.answers.statistics().in_progress == 3
    for client in streams:
        await client.close()


async def test_a_client_that_does_not_read_is_dropped(serve: Serve) -> None:
    """A connection whose response is not read is closed."""
    service = await serve(http_limits=replace(LIMITS, send_seconds=0.3, send_buffer_bytes=4096))
    client = await RawClient.connect(service)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(b"GET /web/swagger/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n")
    async with asyncio.timeout(20):
        while not service.server.connections.statistics().dropped:
            await asyncio.sleep(0.01)

    assert service.server.connections.statistics().dropped == {"send_seconds": 1}
    await client.close()


UNFINISHED = LIVE[:20]


def find_connections() -> list[HttpProtocol | HttpExchange]:
    """Return every connection and exchange of this process."""
    return [t for t in gc.get_objects() if isinstance(t, HttpProtocol | HttpExchange)]


@pytest.mark.slow
async def test_closed_connections_are_freed(service: Service) -> None:
    """No reference cycle keeps a connection and its data until a collection."""
    gc.collect()
    before = {id(thing) for thing in find_connections()}  # of earlier tests in this process
    gc.disable()
    try:
        for request in (
            LIVE + CLOSE + b"\r\n",
            post(b"/ai/test", ASK, b"Connection: close"),
            MALFORMED["no host"],
            UNFINISHED,
        ):
            client = await RawClient.connect(service)
            await client.send(request)
            if request is not UNFINISHED:
                await client.receive()
            await client.close()
        await service.wait_idle()
        async with asyncio.timeout(20):  # until the server has seen each connection close
            while {id(thing) for thing in find_connections()} - before:
                await asyncio.sleep(0.05)
    finally:
        gc.enable()
