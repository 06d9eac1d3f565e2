"""Request heads: targets and hosts."""

import pytest

from service.core.errors import MalformedRequest
from service.http_server.head import parse_target


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"/", b"", (b"/", b"")),
        (b"/a?b=c", b"localhost", (b"/a", b"b=c")),
        (b"//a/b", b"localhost", (b"//a/b", b"")),
        (b"*", b"localhost", (b"*", b"")),
        (b"http://localhost", b"localhost", (b"/", b"")),
        (b"http://localhost:8000/a?b", b"localhost:8000", (b"/a", b"b")),
        (b"HTTP://LOCALHOST/a", b"localhost", (b"/a", b"")),
        (b"http://localhost:80/a", b"localhost", (b"/a", b"")),
        (b"https://localhost/a", b"localhost:443", (b"/a", b"")),
        (b"http://[::1]:8000/a", b"[::1]:8000", (b"/a", b"")),
    ],
)
def test_targets_are_parsed(target: bytes, host: bytes, expected: tuple[bytes, bytes]) -> None:
    """A path, or the URL of the host in the Host header, is a target."""
    assert parse_target(target, host) == expected


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://evil.test/", b"localhost"),
        (b"http://localhost.evil.test/", b"localhost"),
        (b"http://localhost/", b""),
        (b"http://localhost/", b"localhost/x"),
        (b"http://localhost/", b"evil.test@localhost"),
        (b"http://localhost@evil.test/", b"localhost"),
        (b"http://evil.test@localhost/", b"localhost"),
        (b"http://localhost:8001/", b"localhost:8000"),
        (b"http://localhost/", b"localhost:8000"),
        (b"http://localhost:443/", b"localhost"),
        (b"http://[::2]/", b"[::1]"),
        (b"ftp://localhost/", b"localhost"),
        (b"http:///a", b"localhost"),
        (b"localhost:443", b"localhost:443"),
        (b"a", b"localhost"),
        (b"", b"localhost"),
    ],
)
def test_other_targets_are_refused(target: bytes, host: bytes) -> None:
    """A URL of another host, and what is neither a path nor a URL, is malformed."""
    with pytest.raises(MalformedRequest):
        parse_target(target, host)
