"""What a complete request head must satisfy beyond the grammar, which the parser checks. Pure.

The checks close the gaps through which a proxy in front of the service and the service could read
one request in two ways (request smuggling): several hosts, a URL of another host, transfer
encodings that are not `chunked`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httptools

from service.core.errors import HeadTooLarge, KotaeError, MalformedRequest, UrlTooLong
from service.http_server.connections import HttpLimits

_DEFAULT_PORTS = {b"http": 80, b"https": 443}


@dataclass(slots=True)
class RequestHead:
    """The parts of a head that are checked, and what the check results in.

    `path`, `query`, or else `refusal`.
    """

    version: str
    method: str
    url: bytes
    headers: Sequence[tuple[bytes, bytes]]
    hosts: Sequence[bytes]
    transfer_encoding: bytes
    path: bytes = b"/"
    query: bytes = b""
    refusal: KotaeError | None = None

    def check(self, limits: HttpLimits, *, exactly: bool) -> None:
        """Set `path` and `query`, or `refusal`.

        `exactly`: count all bytes, for a head that came in several pieces.
        """
        try:
            if (
                len(self.url) > limits.url_bytes_max
                or len(self.headers) > limits.headers_max
                or exactly
            ):
                check_size(self.url, self.headers, limits)
                if exactly and self._count_bytes() > limits.head_bytes_max:
                    raise head_too_large(limits)
            if self.version not in {"1.1", "1.0"} or self.method == "CONNECT":
                raise MalformedRequest("only HTTP/1.1 and HTTP/1.0 are supported, without CONNECT")
            if len(self.hosts) != 1 and (self.hosts or self.version == "1.1"):
                raise MalformedRequest("the request must have one Host header")
            if self.transfer_encoding and (
                self.version == "1.0" or self.transfer_encoding != b"chunked"
            ):
                raise MalformedRequest(
                    "the transfer encoding is not supported; it can be `chunked`, in HTTP/1.1"
                )
            self.path, self.query = parse_target(self.url, self.hosts[0] if self.hosts else b"")
        except KotaeError as error:
            self.refusal = error.with_traceback(None)  # which refers to this object

    def _count_bytes(self) -> int:
        """The size of the head without white space around values."""
        request_line = f"{self.method}  HTTP/{self.version}\r\n"
        return (
            len(self.url)
            + len(request_line)
            + sum(len(name) + len(value) + 4 for name, value in self.headers)
            + 2
        )


def check_size(url: bytes, headers: Sequence[tuple[bytes, bytes]], limits: HttpLimits) -> None:
    """Raises `UrlTooLong` or `HeadTooLarge`, also for a head that is not complete."""
    if len(url) > limits.url_bytes_max:
        raise UrlTooLong(f"the URL is longer than {limits.url_bytes_max} bytes")
    if len(headers) > limits.headers_max:
        raise head_too_large(limits)


def head_too_large(limits: HttpLimits) -> HeadTooLarge:
    """The error of a head that exceeds one of its limits."""
    return HeadTooLarge(
        f"the head has more than {limits.head_bytes_max} bytes or {limits.headers_max} headers"
    )


def format_without_upgrade(
    method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """A head for a parser that then sees an ordinary request."""
    connection = b",".join(value.lower() for name, value in headers if name == b"connection")
    remaining = [header for header in headers if header[0] not in {b"connection", b"upgrade"}]
    if b"close" in connection:
        remaining.append((b"connection", b"close"))
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    return b"\r\n".join([*lines, *(b"%b: %b" % header for header in remaining), b"", b""])


def parse_target(target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """(path, query) of a request with this `Host`.

    Raises `MalformedRequest`, also for a URL of another host.
    """
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise MalformedRequest("the request target is not a path or a URL") from None
    if url.schema is not None and not _is_of_host(url, host):
        raise MalformedRequest(
            "the URL in the request line names another host than the Host header"
        )
    return url.path or b"/", url.query or b""


def _is_of_host(url: Any, host: bytes) -> bool:
    scheme = url.schema.lower()
    if scheme not in _DEFAULT_PORTS or url.userinfo is not None:
        return False
    try:
        other = httptools.parse_url(b"%b://%b/" % (scheme, host))
    except httptools.HttpParserInvalidURLError:
        return False
    if other.userinfo or other.query or other.path != b"/":
        return False
    port = _DEFAULT_PORTS[scheme]
    return (url.host.lower(), url.port or port) == (other.host.lower(), other.port or port)
