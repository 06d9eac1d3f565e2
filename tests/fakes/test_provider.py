"""The provider fake follows its behaviours and records calls correctly."""

import asyncio
import contextlib
import json
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tests.fakes.obliging import oblige
from tests.fakes.provider import HTML, Behaviour, Ending, ProviderFake, default_text

PROMPT = "Why is the sky blue?"
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["a", "b"]},
    },
}


@pytest.fixture
async def fake() -> AsyncIterator[ProviderFake]:
    """Run a fake on a separate port."""
    async with ProviderFake() as fake:
        yield fake


@pytest.fixture
async def client(fake: ProviderFake) -> AsyncIterator[AsyncOpenAI]:
    """Create the real client without retries."""
    without_tls = openai.DefaultAsyncHttpxClient(
        verify=False
    )  # loading the system's certificates costs 20 ms
    async with AsyncOpenAI(
        base_url=fake.base_url, api_key="x", max_retries=0, http_client=without_tls
    ) as client:
        yield client


async def ask(client: AsyncOpenAI, prompt: str = PROMPT) -> openai.AsyncStream[ChatCompletionChunk]:
    """Request a stream with usage."""
    return await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        stream_options={"include_usage": True},
    )


async def read(client: AsyncOpenAI, prompt: str = PROMPT) -> list[ChatCompletionChunk]:
    """Return every chunk of a stream."""
    return [chunk async for chunk in await ask(client, prompt)]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    """Return the text of the chunks, joined."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def receive_raw(fake: ProviderFake, stream: bool = True) -> bytes:
    """Return all bytes until the other side closes, or is silent after a hang or an end."""
    reader, writer = await connect(fake)
    writer.write(
        request_bytes({"stream": stream, "messages": [{"role": "user", "content": PROMPT}]})
    )
    received = b""
    try:
        while not is_complete(received) and (
            data := await asyncio.wait_for(reader.read(1 << 20), 5)
        ):
            received += data
    except ConnectionResetError:
        received += b"<RST>"
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()
    return received


async def connect(fake: ProviderFake) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a raw connection."""
    host, _, port = fake.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    return await asyncio.open_connection(host, int(port))


def request_bytes(body: dict[str, Any]) -> bytes:
    """Return a chat completion request."""
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        len(data),
        data,
    )


def is_complete(received: bytes) -> bool:
    """True if the bytes are a complete response."""
    head, end, body = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head:
        return received.endswith(b"\r\n0\r\n\r\n")
    length = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.startswith(b"content-length")
    ]
    return bool(end) and bool(length) and len(body) >= length[0]


def decode_chunks(received: bytes) -> bytes:
    """Decode a chunked response, complete or not."""
    body, rest = b"", received.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


async def test_a_stream_is_what_openai_sends(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """A role chunk, text chunks, a finish chunk and a usage chunk without choices are recorded."""
    chunks = await read(client)
    assert text_of(chunks) == default_text(PROMPT) == fake.calls[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 9 + ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage
    assert usage.to_dict() == fake.calls[0].usage
    assert usage.prompt_tokens_details
    assert usage.completion_tokens_details
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    ) == (3, 2)
    assert [call.ended for call in await fake.wait_idle()] == [Ending.FINISHED]


async def test_a_whole_answer(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """Without `stream` the same text and usage come as one object."""
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": PROMPT}]
    )
    assert answer.choices[0].message.content == default_text(PROMPT) == fake.calls[0].text
    assert answer.usage
    assert answer.usage.to_dict() == fake.calls[0].usage
    assert fake.calls[0].headers["authorization"] == "Bearer x"
    assert fake.calls[0].body["model"] == "m"


async def test_answers_are_distinguishable(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """Parallel prompts get different texts, each always the same."""
    prompts = [f"question {n}" for n in range(20)]
    texts = [
        text_of(chunks)
        for chunks in await asyncio.gather(*(read(client, prompt) for prompt in prompts))
    ]
    assert texts == [default_text(prompt) for prompt in prompts]
    assert len(set(texts)) == 20
    assert {call.prompt: call.text for call in fake.calls} == dict(zip(prompts, texts, strict=True))


async def test_models_and_nothing_else(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """The models are listed, every other route is 404, and neither is a call."""
    assert [model.id async for model in await client.models.list()] == ["fake-model"]
    with pytest.raises(openai.NotFoundError):
        await client.moderations.create(model="m", input="x")
    assert (fake.calls, fake.others) == ([], ["GET /v1/models", "POST /v1/moderations"])


async def test_usage_only_on_request(fake: ProviderFake) -> None:
    """A stream that does not ask for usage has none, unless the behaviour overrides it."""
    assert b"usage" not in await receive_raw(fake)
    fake.next(Behaviour(usage_unasked=True))
    assert b'"usage":{' in await receive_raw(fake)
    assert [bool(call.usage) for call in fake.calls] == [False, True]


@pytest.mark.parametrize(
    ("usage", "sent"),
    [
        ("null", None),
        ("empty", {}),
        ("negative", {"completion_tokens": -10}),
        ("float", {"completion_tokens": 10.5}),
        ("string", {"completion_tokens": "10"}),
        ("huge", {"completion_tokens": 10**30}),
        ("wrong-total", {"total_tokens": 1}),
        ("reasoning-over", {"completion_tokens_details": {"reasoning_tokens": 11}}),
        ("cached-over", {"prompt_tokens_details": {"cached_tokens": 14}}),
        ({"anything": [1]}, {"anything": [1]}),
        ([1], [1]),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_usage_that_is_wrong(fake: ProviderFake, usage: Any, sent: Any, stream: bool) -> None:
    """Any usage value is sent unchanged, streamed or not."""
    fake.next(Behaviour(usage=usage, usage_unasked=True))
    received = await receive_raw(fake, stream=stream)
    objects = (
        [json.loads(line[6:]) for line in decode_chunks(received).split(b"\n\n")[:-2]]
        if stream
        else [json.loads(received.partition(b"\r\n\r\n")[2])]
    )
    sent_usage = objects[-1]["usage"]
    assert sent_usage == sent or sent.items() <= sent_usage.items()
    assert sent_usage == fake.calls[0].usage


async def test_usage_omitted(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """With usage None the stream ends without usage, even if it was requested."""
    fake.next(Behaviour(usage=None))
    assert [chunk.usage for chunk in await read(client)] == [None] * 10
    assert fake.calls[0].usages == []


@pytest.mark.parametrize(
    ("place", "times", "usages"), [("own", 2, 2), ("finish", 1, 1), ("every", 1, 9)]
)
async def test_usage_in_other_places(
    fake: ProviderFake, client: AsyncOpenAI, place: Any, times: int, usages: int
) -> None:
    """Usage is sent twice, or on the last chunk with choices, or on every chunk, increasing."""
    fake.next(Behaviour(usage_place=place, usage_times=times))
    chunks = await read(client)
    assert [chunk.usage.to_dict() for chunk in chunks if chunk.usage] == fake.calls[0].usages
    assert len(fake.calls[0].usages) == usages
    assert bool(chunks[-1].choices) == (place != "own")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (400, openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("body", [None, b"", HTML])
async def test_error_statuses(
    fake: ProviderFake,
    client: AsyncOpenAI,
    status: int,
    error: type[openai.APIStatusError],
    body: bytes | None,
) -> None:
    """An error has OpenAI's body, none, or HTML, and `Retry-After`; the next call is served."""
    fake.next(Behaviour(status=status, body=body, retry_after=7))
    with pytest.raises(error) as caught:
        await read(client)
    assert caught.value.response.headers["retry-after"] == "7"
    assert (fake.calls[0].ended, fake.calls[0].text, fake.calls[0].status) == (
        Ending.ERROR,
        "",
        status,
    )
    assert text_of(await read(client)) == default_text(PROMPT)


async def test_ok_with_html(fake: ProviderFake) -> None:
    """A 200 can have an HTML page as its body."""
    fake.next(Behaviour(body=HTML))
    received = await receive_raw(fake)
    assert received.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/html")
    assert received.endswith(HTML)
    assert fake.calls[0].ended is Ending.ERROR


@pytest.mark.parametrize("persistent", [False, True])
async def test_refused(fake: ProviderFake, client: AsyncOpenAI, persistent: bool) -> None:
    """A refused connection, new or persistent, is closed without a call; the next is served."""
    if persistent:
        await read(client)
    fake.next(Behaviour(refuse=True))
    with pytest.raises(openai.APIConnectionError):
        await read(client)
    assert (len(fake.calls), fake.refused) == (persistent, 1)
    await read(client)
    assert len(fake.calls) == persistent + 1


async def test_away(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """While the fake is away nothing listens; afterwards it listens at the same address."""
    await read(client)
    async with fake.away():
        with pytest.raises(openai.APIConnectionError):
            await read(client)
    await read(client)
    assert len(fake.calls) == 2


async def test_closed_before_headers(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """A cut after the request leaves a call without a status."""
    fake.next(Behaviour(cut_after="request"))
    with pytest.raises(openai.APIConnectionError):
        await read(client)
    assert (fake.calls[0].ended, fake.calls[0].status) == (Ending.CUT, None)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("point", ["headers", 0, 1, 3, 8, "finish", "usage"])
async def test_cut_after_each_point(fake: ProviderFake, how: Any, point: Any) -> None:
    """A cut, FIN or RST, comes directly after its point, and the text until then is recorded."""
    fake.next(Behaviour(cut_after=point, cut=how, usage_unasked=True))
    received = await receive_raw(fake)
    call = fake.calls[0]
    chunks = 0 if point == "headers" else point if isinstance(point, int) else 8
    assert (call.ended, call.chunks, call.text) == (
        Ending.CUT,
        chunks,
        default_text(PROMPT, chunks),
    )
    assert (call.usage is not None) == (point == "usage")
    assert received.endswith(b"<RST>") == (how == "rst")
    assert received.count(b'"content":"') == (0 if point == "headers" else chunks + 1)
    assert b"[DONE]" not in received


async def test_cut_inside_a_line(fake: ProviderFake) -> None:
    """The cut is in the middle of the event that follows the point."""
    fake.next(Behaviour(cut_after=3, cut_inside=True))
    body = decode_chunks(await receive_raw(fake))
    assert body.count(b"\n\n") == 4
    assert len(body.rpartition(b"\n\n")[2]) > 20
    assert fake.calls[0].chunks == 3


async def test_cut_at_every_byte(fake: ProviderFake) -> None:
    """A cut is possible at any byte of the body, and that number of bytes arrives."""
    whole = decode_chunks(await receive_raw(fake))
    for at in (*range(0, len(whole), 41), len(whole)):
        fake.next(Behaviour(cut_at_byte=at))
        assert decode_chunks((await receive_raw(fake)).removesuffix(b"\r\n")) == whole[:at]
        assert (fake.calls[-1].ended, fake.calls[-1].body_bytes) == (Ending.CUT, at)


async def test_cut_of_a_whole_answer(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """An answer that is not streamed is cut in the middle of its body."""
    fake.next(Behaviour(cut_after=3))
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="m", messages=[])
    assert (fake.calls[0].ended, fake.calls[0].text, fake.calls[0].usage) == (Ending.CUT, "", None)


@pytest.mark.parametrize("point", ["request", "headers", 2])
async def test_hang_until_the_client_goes(fake: ProviderFake, point: Any) -> None:
    """A hanging call stays open until the client disconnects, which is recorded with its time."""
    fake.next(Behaviour(hang_after=point))
    _, writer = await connect(fake)
    writer.write(request_bytes({"stream": True}))
    (call,) = await fake.wait_calls(1)
    await fake.wait_chunks(call, point if isinstance(point, int) else 0)
    assert call.ended is Ending.OPEN
    left_at = time.monotonic()
    writer.close()
    await writer.wait_closed()
    assert await fake.wait_ended(call) is Ending.ABORTED
    assert call.ended_at
    assert left_at <= call.ended_at <= time.monotonic()


async def test_the_real_client_leaves(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """When the real client closes its stream, the call is aborted with the text sent until then."""
    fake.next(Behaviour(hang_after=2))
    stream = await ask(client)
    async for chunk in stream:
        if chunk.choices[0].delta.content == fake.default.build_deltas(PROMPT)[1]:
            break
    await stream.close()
    (call,) = await fake.wait_idle()
    assert (call.ended, call.text) == (Ending.ABORTED, default_text(PROMPT, 2))


async def test_hanging_with_comments(fake: ProviderFake) -> None:
    """A hanging stream can go on sending comments."""
    fake.next(Behaviour(hang_after=1, hang_comments=0.001))
    reader, writer = await connect(fake)
    writer.write(request_bytes({"stream": True}))
    for _ in range(3):
        await reader.readuntil(b": keep-alive\n\n")
    writer.close()
    assert [call.chunks for call in await fake.wait_idle()] == [1]


async def test_hold(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """A held call continues only when its condition is set."""
    go, go_on = asyncio.Event(), asyncio.Event()
    fake.next(Behaviour(hold=go, hold_after="request", holds={3: go_on}))
    reading = asyncio.create_task(read(client))
    (call,) = await fake.wait_calls(1)
    assert call.status is None
    go.set()
    await fake.wait_chunks(call, 3)
    assert (call.chunks, call.ended) == (3, Ending.OPEN)
    go_on.set()
    assert text_of(await reading) == default_text(PROMPT)


async def test_delays(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """Headers, the first chunk and the others are not sent early."""
    fake.next(Behaviour(headers_delay=0.03, first_delay=0.02, gap=0.01, chunks=3))
    before = time.monotonic()
    stream = await ask(client)
    assert time.monotonic() - before >= 0.03
    assert len([chunk async for chunk in stream]) == 6
    assert time.monotonic() - before >= 0.07


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", None])
@pytest.mark.parametrize("with_text", [True, False])
async def test_finish_reasons(
    fake: ProviderFake, client: AsyncOpenAI, finish_reason: str | None, with_text: bool
) -> None:
    """The finish reason is set by the behaviour, in a separate chunk or on the last text."""
    fake.next(Behaviour(finish_reason=finish_reason, finish_with_text=with_text, usage=None))
    chunks = await read(client)
    assert chunks[-1].choices[0].finish_reason == finish_reason
    assert bool(chunks[-1].choices[0].delta.content) == with_text


async def test_an_early_end(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """A clean end without a finish reason raises nothing in the client and is a cut."""
    fake.next(Behaviour(finish_reason="absent", usage=None, done=False))
    chunks = await read(client)
    assert {choice.finish_reason for chunk in chunks for choice in chunk.choices} == {None}
    assert fake.calls[0].ended is Ending.CUT


async def test_without_done(fake: ProviderFake) -> None:
    """A stream can end without [DONE]."""
    fake.next(Behaviour(done=False))
    received = await receive_raw(fake)
    assert b"[DONE]" not in received
    assert received.endswith(b"\n\n\r\n0\r\n\r\n")
    assert fake.calls[0].ended is Ending.FINISHED


async def test_an_error_event(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """An error event ends the stream in the middle."""
    fake.next(Behaviour(error_after=2, error={"message": "overloaded", "code": "x"}))
    with pytest.raises(openai.APIError, match="overloaded"):
        await read(client)
    assert [(call.ended, call.chunks) for call in await fake.wait_idle()] == [(Ending.CUT, 2)]


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour(malformed_after=2), json.JSONDecodeError),
        (Behaviour(invalid_utf8_after=2), UnicodeDecodeError),
    ],
    ids=["malformed", "utf-8"],
)
async def test_invalid_chunks(
    fake: ProviderFake, client: AsyncOpenAI, behaviour: Behaviour, error: type[Exception]
) -> None:
    """A malformed chunk, or one that is not UTF-8, is sent at its point."""
    fake.next(behaviour)
    with pytest.raises(error):
        await read(client)


async def test_raw_bytes(fake: ProviderFake) -> None:
    """Any bytes can be put at any point."""
    fake.next(Behaviour(raw_after="headers", raw=b"\xef\xbb\xbf"))
    assert decode_chunks(await receive_raw(fake)).startswith(b"\xef\xbb\xbfdata: ")


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize(
    "behaviour",
    [
        {"bytes_per_write": 1},
        {"bytes_per_write": 3},
        {"chunks_per_write": 0},
        {"chunks_per_write": 3},
        {"newline": "\r\n"},
        {"comments": True},
        {"role": "null"},
        {"role": "none"},
        {"empty_choices": True},
        {"extra": True},
        {"gzip": True},
        {"keep_alive": False},
    ],
    ids=str,
)
async def test_harmless_oddities(
    fake: ProviderFake, client: AsyncOpenAI, framing: Any, behaviour: dict[str, Any]
) -> None:
    """The real client reads unusual but valid answers like any other."""
    fake.next(Behaviour(**behaviour, framing=framing))
    chunks = await read(client)
    assert text_of(chunks) == default_text(PROMPT) == fake.calls[0].text
    assert chunks[-1].usage
    assert chunks[-1].usage.to_dict() == fake.calls[0].usage
    assert text_of(await read(client)) == default_text(PROMPT)


async def test_a_fin_that_looks_like_an_end(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """A cut of a body that ends with the connection is not detectable."""
    fake.next(Behaviour(framing="close", cut_after=2))
    assert text_of(await read(client)) == default_text(PROMPT, 2)
    assert fake.calls[0].ended is Ending.CUT


async def test_one_write(fake: ProviderFake) -> None:
    """With `chunks_per_write=0` the whole body is one transfer chunk; otherwise each event is."""
    fake.next(Behaviour(chunks_per_write=0), Behaviour())
    assert [(await receive_raw(fake)).count(b"\r\ndata: ") for _ in range(2)] == [1, 11]


async def test_a_huge_line(fake: ProviderFake) -> None:
    """One line of a million characters is sent at its point."""
    fake.next(Behaviour(huge_line_bytes=1_000_000, huge_line_after=2))
    lines = decode_chunks(await receive_raw(fake)).split(b"\n\n")
    assert len(lines[3]) == 1_000_000 + len(
        b'data: {"choices":[{"index":0,"delta":{"content":""}}]}'
    )


async def test_a_gzip_bomb(fake: ProviderFake) -> None:
    """A hundred million bytes are sent as a few hundred thousand."""
    fake.next(Behaviour(gzip=True, huge_line_bytes=20_000_000))
    body = decode_chunks(await receive_raw(fake))
    assert len(body) < 100_000
    assert len(zlib.decompress(body, wbits=31)) > 20_000_000


async def test_endless(fake: ProviderFake) -> None:
    """An endless stream ends when the client disconnects, even if the client does not read."""
    fake.next(Behaviour(endless=True))
    _, writer = await connect(fake)
    writer.write(request_bytes({"stream": True}))
    (call,) = await fake.wait_calls(1)
    await fake.wait_chunks(call, 50)
    writer.transport.abort()
    assert await fake.wait_ended(call) is Ending.ABORTED


async def test_markers(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """Parallel calls select their behaviours in their prompts."""
    prompts = [
        "[[text=a-b-c usage=none]]?",
        "[[status=429 retry-after=3]]",
        "[[chunks=3]] [[finish-reason=length]]",
        "plain",
    ]
    results = await asyncio.gather(
        *(read(client, prompt) for prompt in prompts), return_exceptions=True
    )
    assert isinstance(results[1], openai.RateLimitError)
    texts = [text_of(result) if isinstance(result, list) else "" for result in results]
    assert texts == ["a-b-c", "", default_text(prompts[2], 3), default_text("plain")]


async def test_an_invalid_marker(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """An invalid marker is an error, not ignored."""
    with pytest.raises(openai.BadRequestError, match="no field 'cut_offter'"):
        await read(client, "[[cut-offter=3]]")


async def test_the_queue_comes_before_the_default(fake: ProviderFake, client: AsyncOpenAI) -> None:
    """Queued behaviours serve the next calls in order, then the default does."""
    fake.default = Behaviour(text="default")
    fake.next(Behaviour(text="first"), Behaviour(deltas=["sec", "ond"]))
    assert [text_of(await read(client)) for _ in range(3)] == ["first", "second", "default"]


async def test_a_wait_times_out(fake: ProviderFake) -> None:
    """A wait that times out reports the recorded calls."""
    with pytest.raises(TimeoutError, match="has seen 0 calls"):
        await fake.wait_calls(1, seconds=0.001)


async def test_pipelined_requests(fake: ProviderFake) -> None:
    """Pipelined requests are answered one after the other."""
    reader, writer = await connect(fake)
    writer.write(request_bytes({"messages": []}) + request_bytes({"stream": True}))
    received = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert [call.ended for call in await fake.wait_idle()] == [Ending.FINISHED] * 2
    writer.close()


async def test_closing_ends_open_calls(client: AsyncOpenAI, fake: ProviderFake) -> None:
    """When the fake closes, open calls are recorded as closed."""
    fake.next(Behaviour(hang_after=0))
    reading = asyncio.create_task(read(client))
    (call,) = await fake.wait_calls(1)
    await fake.wait(lambda: call.status is not None)
    await fake.close()
    assert call.ended is Ending.CLOSED
    with pytest.raises(openai.APIConnectionError):
        await reading


async def test_a_separate_process() -> None:
    """As a process it prints its URL, accepts a behaviour, and returns its record over HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.fakes.provider",
        "--port",
        str(port),
        "--behaviour",
        "chunks=3",
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout
        base_url = (await process.stdout.readline()).decode().strip()
        assert base_url == f"http://127.0.0.1:{port}/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
            assert text_of(await read(client)) == default_text(PROMPT, 3)
            truth = json.loads(
                await client.with_options(base_url=base_url.removesuffix("/v1")).get(
                    "/truth", cast_to=str
                )
            )
    finally:
        process.terminate()
        await process.wait()
    assert [(call["prompt"], call["text"], call["ended"]) for call in truth["calls"]] == [
        (PROMPT, default_text(PROMPT, 3), "finished")
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_functions_are_called(
    fake: ProviderFake, client: AsyncOpenAI, *, stream: bool
) -> None:
    """Arguments follow the schema, whole or in pieces; the result of a call gets a text."""
    fake.choose = oblige
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": "Call f with 3."}]}
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    usage: Any = {"include_usage": True}
    if stream:
        async with client.chat.completions.stream(
            **ask, tools=tools, stream_options=usage
        ) as events:
            completion: Any = await events.get_final_completion()
    else:
        completion = await client.chat.completions.create(**ask, tools=tools)
    (call,) = completion.choices[0].message.tool_calls
    ask["messages"] += [completion.choices[0].message, {"role": "tool", "content": "4"}]
    answer = await client.chat.completions.create(**ask, tools=tools)

    assert completion.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"n": 3, "names": ["Paris"], "kind": "a"}
    assert completion.usage.to_dict() == fake.calls[0].usage
    assert answer.choices[0].message.content == fake.calls[1].text != ""
