"""Compression of responses with gzip, for routes whose responses are large.

Event streams are never compressed: an event would wait for the next one.
"""

import zlib
from collections.abc import AsyncIterator

import anyio
from fastapi import Response

_MIN_BYTES = 1_000  # a shorter body fits into a packet
_THREAD_BYTES = 32_768  # a longer body would occupy the event loop for more than a millisecond
_LEVEL = 4
_GZIP_BITS = 31  # a gzip header and trailer, and the largest window


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether the header `Accept-Encoding` allows gzip (RFC 9110 section 12.5.3)."""
    weights = {}
    for item in accept_encoding.lower().split(","):
        coding, _, parameter = item.partition(";")
        weights[coding.strip()] = parameter.replace(" ", "")
    weight = weights.get("gzip", weights.get("*", "q=0"))
    return weight.removeprefix("q=").strip("0.") != "" or weight == ""


async def compress_response(response: Response) -> None:
    """Compress the body of a response, unless it is short."""
    body = bytes(response.body)
    if len(body) < _MIN_BYTES:
        return
    if len(body) < _THREAD_BYTES:
        compressed = _compress(body)
    else:
        compressed = await anyio.to_thread.run_sync(_compress, body)
    response.body = compressed
    response.headers["Content-Encoding"] = "gzip"
    response.headers["Content-Length"] = str(len(compressed))


async def compress_stream(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Compress a stream, part by part."""
    compressor = zlib.compressobj(_LEVEL, wbits=_GZIP_BITS)
    async for part in parts:
        compressed = await anyio.to_thread.run_sync(compressor.compress, part)
        if compressed:
            yield compressed
    yield compressor.flush()


def _compress(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, wbits=_GZIP_BITS)
