"""The choice of an encoding."""

import gzip
from collections.abc import AsyncIterator

import pytest
from fastapi import Response

from service.api.compression import accepts_gzip, compress_response, compress_stream


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("identity", False),
        ("br, zstd", False),
        ("gzip", True),
        ("GZip ; q=0.5", True),
        ("br, gzip;q=1.0", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("x-gzipped", False),
    ],
)
def test_gzip_is_accepted_unless_its_weight_is_zero(header: str, expected: bool) -> None:
    """The header lists codings with weights; a weight of zero excludes one."""
    assert accepts_gzip(header) is expected


@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_long_bodies_are_compressed(size: int) -> None:
    """The body is compressed, and its length is that of the compressed body."""
    response = Response(b"a" * size)
    await compress_response(response)

    assert response.headers["Content-Encoding"] == "gzip"
    assert int(response.headers["Content-Length"]) == len(response.body)
    assert gzip.decompress(bytes(response.body)) == b"a" * size


async def test_short_body_is_not_compressed() -> None:
    """A body that fits into one packet is sent as it is."""
    response = Response(b"short")
    await compress_response(response)

    assert (bytes(response.body), "Content-Encoding" in response.headers) == (b"short", False)


async def test_stream_is_one_gzip_member() -> None:
    """The parts of a stream are compressed into one member, also without any part."""

    async def produce(parts: list[bytes]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    for parts in ([], [b"a" * 10_000, b"b", b"c" * 10]):
        compressed = b"".join([part async for part in compress_stream(produce(parts))])
        assert gzip.decompress(compressed) == b"".join(parts)
