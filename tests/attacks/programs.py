"""The attacks, each a small program on raw sockets: `python -m tests.attacks.programs NAME HOST PORT SECONDS [KEY]`.

A program prints one line of JSON: the statuses that it received, the bytes that it sent, how many of its connections
the service closed, and the end of what it received last.
"""

import json
import sys
from collections.abc import Callable
from itertools import chain, count

from tests.attacks.sender import Outcome, Target, repeat, send_again_and_again

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


if __name__ == "__main__":
    name, host, port, seconds, key = sys.argv[1:]
    statuses, *rest = PROGRAMS[name](Target(host, int(port), float(seconds), key))
    print(json.dumps([statuses, *rest]))
