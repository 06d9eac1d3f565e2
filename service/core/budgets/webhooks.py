"""Webhooks, as specified by Standard Webhooks 1.0 (https://www.standardwebhooks.com).

    webhook-id          id of the message: the same at every attempt
    webhook-timestamp   time of the attempt, in seconds since 1970
    webhook-signature   `v1,` and the HMAC-SHA256 of `id.timestamp.body`, in base64

The name of the receiver is resolved for each attempt, all of its addresses are checked, and the
connection is made to an address that was checked, so that a name cannot change its meaning in
between (DNS rebinding). TLS verifies the certificate of the name. Redirects are not followed. The
body of the response is not read; an attempt takes at most `ATTEMPT_SECONDS`.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from service import __version__
from service.core.errors import ProviderError, ProviderUnreachable
from service.core.http1 import ConnectionPool
from service.core.secret_keys import parse_webhook_secret

CONNECT_SECONDS = 5.0
ATTEMPT_SECONDS = 15.0
ADDRESSES_MAX = 4  # that are tried in one attempt
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: contains all IPv4 addresses
_PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class WebhookFailed(Exception):
    """An attempt was not confirmed. `is_final`: the receiver is gone (410)."""

    def __init__(self, detail: str, *, is_final: bool = False) -> None:
        super().__init__(detail)
        self.is_final = is_final


class WebhookReceiver:
    """The receiver of all webhooks. `url`, `secret`: as checked by the settings.

    `allow_private`: its addresses may be private, loopback or link-local. `tls`: verifies
    certificates; default: by the authorities of the system. `resolve`: returns the addresses of a
    name and a port.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        allow_private: bool = False,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self._url, self._key = urlsplit(url), parse_webhook_secret(secret)
        self._allow_private, self._tls = allow_private, tls
        self._resolve = resolve or resolve_name
        self._attempt_seconds = attempt_seconds

    async def deliver(self, message_id: str, body: str, at: float) -> None:
        """Make one attempt at a time (seconds since 1970). Raises `WebhookFailed`."""
        request = self._build_request(message_id, body.encode(), int(at))
        try:
            async with asyncio.timeout(self._attempt_seconds):
                status = await self._send(request)
        except TimeoutError as error:
            raise WebhookFailed("the receiver did not respond in time") from error
        except ProviderUnreachable as error:
            raise WebhookFailed("no connection to the receiver") from error
        except ProviderError as error:
            raise WebhookFailed("the connection to the receiver broke") from error
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise WebhookFailed(
                f"the receiver responded with status {status}", is_final=status == HTTPStatus.GONE
            )

    async def _send(self, request: bytes) -> int:
        """Send a request to the first address that accepts a connection; return the status."""
        host, port = self._url.hostname or "", self._url.port or _PORTS[self._url.scheme]
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise WebhookFailed("the name of the receiver cannot be resolved") from error
        self._require_allowed(addresses)
        failure = ProviderUnreachable("the receiver has no address")
        for address in addresses[:ADDRESSES_MAX]:
            pool = ConnectionPool(
                address,
                port,
                self._get_tls(),
                connect_seconds=CONNECT_SECONDS,
                idle_seconds=self._attempt_seconds,
                server_name=host,
            )
            try:
                connection = await pool.send_request(request)
                await connection.wait_head()
            except ProviderUnreachable as error:  # nothing was sent
                failure = error
            else:
                return connection.status
            finally:
                await pool.aclose()
        raise failure

    def _require_allowed(self, addresses: Sequence[str]) -> None:
        """Require that all addresses are permitted. Raises `WebhookFailed`."""
        for address in addresses:
            if is_public(address):
                if self._url.scheme != "https":
                    raise WebhookFailed("a receiver with a public address needs https")
            elif not self._allow_private or not is_host(address):
                raise WebhookFailed(
                    "the address of the receiver is not public: see KOTAE_WEBHOOK_PRIVATE_ADDRESSES"
                )

    def _get_tls(self) -> ssl.SSLContext | None:
        if self._url.scheme != "https":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _build_request(self, message_id: str, body: bytes, timestamp: int) -> bytes:
        path = self._url.path or "/"
        target = f"{path}?{self._url.query}" if self._url.query else path
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {self._url.netloc}",
            f"User-Agent: kotae/{__version__}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            f"webhook-id: {message_id}",
            f"webhook-timestamp: {timestamp}",
            f"webhook-signature: {sign_message(self._key, message_id, timestamp, body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def sign_message(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of an attempt."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def is_public(address: str) -> bool:
    """Whether an IP address, or the IPv4 address in it, can be reached through the internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        teredo = parsed.teredo
        embedded = parsed.ipv4_mapped or parsed.sixtofour or (teredo and teredo[1])
        if parsed in _NAT64:
            embedded = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if parsed.is_site_local:
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


def is_host(address: str) -> bool:
    """Whether an IP address can be that of one host."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return not (parsed.is_multicast or parsed.is_unspecified)


async def resolve_name(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order of preference. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))
