"""The attacks: `python -m tests.attacks.programs NAME HOST PORT SECONDS [KEY]`.

Each is a small program on raw sockets. It prints one line of JSON: the statuses that it received,
the bytes that it sent, the number of connections that the service closed, and the end of the last
response.
"""

import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain, count

from tests.attacks.sender import (
    ATTEMPTS,
    ATTEMPTS_SECONDS,
    Outcome,
    Target,
    ask_again_and_again,
    hold_connections,
    repeat,
    send_again_and_again,
)

LARGE = 50_000_000  # bytes: more than any limit, and visible in the memory of the service

Program = Callable[[Target], Outcome]
PROGRAMS: dict[str, Program] = {}


def program(function: Program) -> Program:
    """Register a program under its name."""
    PROGRAMS[function.__name__] = function
    return function


@program
def endless_url(target: Target) -> Outcome:
    """A request line that does not end."""
    return send_again_and_again(target, lambda: chain([b"GET /"], repeat(b"a", LARGE)))


@program
def endless_header_value(target: Target) -> Outcome:
    """A header whose value does not end."""
    return send_again_and_again(
        target, lambda: chain([target.head() + b"X-Long: "], repeat(b"a", LARGE))
    )


@program
def endless_header_name(target: Target) -> Outcome:
    """A header whose name does not end."""
    return send_again_and_again(target, lambda: chain([target.head()], repeat(b"a", LARGE)))


@program
def endless_header_padding(target: Target) -> Outcome:
    """White space between a header's name and its value that does not end."""
    return send_again_and_again(
        target, lambda: chain([target.head() + b"X-Padded:"], repeat(b" ", LARGE))
    )


@program
def endless_headers(target: Target) -> Outcome:
    """A head of short headers that does not end."""
    return send_again_and_again(target, lambda: chain([target.head()], repeat(b"a: b\r\n", LARGE)))


@program
def endless_empty_lines(target: Target) -> Outcome:
    """Empty lines in front of a request that never comes."""
    return send_again_and_again(target, lambda: repeat(b"\r\n", LARGE))


@program
def endless_trailers(target: Target) -> Outcome:
    """A chunked body whose trailers do not end."""
    head = target.head(
        "POST", "/ai/test", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return send_again_and_again(
        target, lambda: chain([head + b"\r\n0\r\n"], repeat(b"a: b\r\n", LARGE))
    )


@program
def endless_trailer_value(target: Target) -> Outcome:
    """A chunked body with one trailer whose value does not end."""
    head = target.head(
        "POST", "/ai/test", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return send_again_and_again(
        target, lambda: chain([head + b"\r\n0\r\nX-Long: "], repeat(b"a", LARGE))
    )


@program
def endless_chunk_extension(target: Target) -> Outcome:
    """A chunk whose extension does not end."""
    head = target.head(
        "POST", "/ai/test", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return send_again_and_again(target, lambda: chain([head + b"\r\n1;"], repeat(b"a", LARGE)))


@program
def chunk_extensions(target: Target) -> Outcome:
    """Chunks of one byte, each with a long extension."""
    head = target.head(
        "POST", "/ai/upload", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return send_again_and_again(
        target, lambda: chain([head + b"\r\n"], repeat(b"1;" + b"a" * 1000 + b"\r\n \r\n", LARGE))
    )


@program
def pipelined_requests(target: Target) -> Outcome:
    """Requests that follow each other without waiting for their responses, which are not read."""
    return send_again_and_again(
        target, lambda: repeat(target.request("GET", "/health/live"), LARGE)
    )


@program
def pipelined_behind_a_stream(target: Target) -> Outcome:
    """Requests behind one that is still answered: they can only wait."""
    stream = target.request("POST", "/ai/stream", b'{"prompt": "How many days?"}')
    return send_again_and_again(
        target, lambda: chain([stream], repeat(target.request("GET", "/docs"), LARGE))
    )


@program
def pipelined_bodies(target: Target) -> Outcome:
    """Requests with bodies behind each other, of which none is read by a route."""
    request = target.request("POST", "/health/live", b" " * 60_000)
    return send_again_and_again(target, lambda: (request for _ in count()))


@program
def silent_connections(target: Target) -> Outcome:
    """Connections that send nothing, as many as possible."""
    return hold_connections(target, [])


@program
def slow_heads(target: Target) -> Outcome:
    """Connections that send a head byte by byte."""
    return hold_connections(
        target, [bytes([byte]) for byte in target.head() + b"X: " + b"a" * 10_000]
    )


@program
def heads_without_end(target: Target) -> Outcome:
    """Connections that send nearly as much as a head may have, and then nothing."""
    return hold_connections(target, [target.head() + b"X: " + b"a" * 30_000])


@program
def slow_bodies(target: Target) -> Outcome:
    """Connections that send a body byte by byte."""
    head = target.head(
        "POST", "/ai/test", "Content-Type: application/json", "Content-Length: 10000"
    )
    return hold_connections(target, [head + b"\r\n", *[b" "] * 10_000])


@program
def half_closed_connections(target: Target) -> Outcome:
    """Connections that announce, before the head is complete, that nothing more will be sent."""
    return hold_connections(target, [target.head()], shut=True)


@program
def unread_responses(target: Target) -> Outcome:
    """Connections that ask for a large file and do not read it."""
    request = target.head("GET", "/web/swagger/swagger-ui-bundle.js") + b"\r\n"
    return hold_connections(target, [request], SO_RCVBUF=4096)


@program
def connection_attempts(target: Target) -> Outcome:
    """Connections that are opened and closed again at once."""
    ends, opened, closed = time.monotonic() + target.seconds, 0, 0
    while time.monotonic() < ends:
        if opened % ATTEMPTS == 0:
            time.sleep(ATTEMPTS_SECONDS)
        try:
            client = target.connect()
        except OSError:
            closed += 1
            continue
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # no TIME_WAIT
        client.close()
        opened += 1
    return Outcome(Counter(), 0, closed, opened)


@program
def unknown_fields(target: Target) -> Outcome:
    """Uploads with a million unknown fields."""
    return ask_again_and_again(target, "/ai/upload", b'{"text":"a",' + fields(9_500_000) + b"}")


@program
def unknown_fields_of_a_question(target: Target) -> Outcome:
    """Questions with tens of thousands of unknown fields."""
    return ask_again_and_again(target, "/ai/test", b'{"prompt":"a",' + fields(380_000) + b"}")


@program
def unknown_limits(target: Target) -> Outcome:
    """Keys with thousands of unknown limits."""
    return ask_again_and_again(target, "/ai/keys", b'{"limits":{' + fields(60_000) + b"}}")


@program
def repeated_fields(target: Target) -> Outcome:
    """Uploads that have the same field a million times."""
    return ask_again_and_again(
        target, "/ai/upload", b"{" + b'"text":"a",' * 800_000 + b'"title":"a"}'
    )


@program
def nested_arrays(target: Target) -> Outcome:
    """Uploads with arrays in arrays."""
    return ask_again_and_again(target, "/ai/upload", b'{"text":' + b"[" * 9_000_000)


@program
def nested_objects_of_a_question(target: Target) -> Outcome:
    """Questions with objects in objects."""
    return ask_again_and_again(target, "/ai/test", b'{"prompt":' + b'{"a":' * 70_000)


@program
def many_numbers(target: Target) -> Outcome:
    """Questions with an array of numbers in place of a text."""
    return ask_again_and_again(target, "/ai/test", b'{"prompt":[' + b"1," * 180_000 + b"1]}")


@program
def huge_number(target: Target) -> Outcome:
    """Questions with a number of many digits."""
    return ask_again_and_again(
        target, "/ai/test", b'{"prompt":"a","max_tokens":' + b"1" * 380_000 + b"}"
    )


@program
def white_space(target: Target) -> Outcome:
    """Uploads that are nothing but white space."""
    return ask_again_and_again(target, "/ai/upload", b" " * 9_000_000)


@program
def blank_text(target: Target) -> Outcome:
    """Uploads of a text that is nothing but escaped line feeds."""
    return ask_again_and_again(target, "/ai/upload", b'{"text":"' + b"\\n" * 4_500_000 + b'"}')


@program
def text_of_escapes(target: Target) -> Outcome:
    """Uploads of a text that is too large, written in escapes."""
    return ask_again_and_again(target, "/ai/upload", b'{"text":"' + b"\\u3042" * 2_300_000 + b'"}')


@program
def oversized_body(target: Target) -> Outcome:
    """Uploads that are larger than any may be."""
    return ask_again_and_again(target, "/ai/upload", b'{"text":"' + b"a" * 99_000_000 + b'"}')


@program
def body_of_small_chunks(target: Target) -> Outcome:
    """Uploads in chunks of one byte."""
    head = target.head(
        "POST", "/ai/upload", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return send_again_and_again(
        target, lambda: chain([head + b"\r\n"], repeat(b"1\r\n \r\n", 20_000_000))
    )


@program
def form_of_fields(target: Target) -> Outcome:
    """Forms of many fields instead of files."""
    field = (
        b'--bound\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"a" * 900_000 + b"\r\n"
    )
    return ask_again_and_again(
        target, "/ai/upload", field * 20, "multipart/form-data; boundary=bound"
    )


def fields(size: int) -> bytes:
    """Return as many short fields as fit into this number of bytes."""
    return b",".join(b'"a%d":1' % number for number in range(size // 11))


if __name__ == "__main__":
    name, host, port, seconds, key = sys.argv[1:]
    statuses, *rest = PROGRAMS[name](Target(host, int(port), float(seconds), key))
    print(json.dumps([statuses, *rest]))
