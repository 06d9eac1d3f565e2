"""Signatures of requests between replicas.

A signature covers the recipient, the method, the path with the query, the forwarded headers, the
hash of the body, the time, a nonce and the caller. A recipient accepts it once, within
`CLOCK_SECONDS` of its time. The nonces of that period are remembered, up to `NONCES_MAX`; beyond
it requests are refused, because a repeated one could not be recognized.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from service.core.errors import Forbidden, LoopDetected, Overloaded
from service.core.ports import PeerRequest
from service.core.secret_keys import derive_key

HEADER = "kotae-peer"
REFUSED_HEADER = "kotae-peer-refused"  # of responses to requests that no route has seen
PREFIX_HEADER = "kotae-prefix"  # the scheme and the path prefix of the client's request
FINGERPRINT_HEADER = "kotae-fingerprint"  # of a request that the client repeats
# Headers of a client that the other replica needs. All of them are signed.
FORWARDED_HEADERS = (
    "accept",
    "content-type",
    "idempotency-key",
    FINGERPRINT_HEADER,
    "host",
    PREFIX_HEADER,
    "last-event-id",
    "x-request-id",
    "x-stainless-retry-count",
)
CLOCK_SECONDS = 30.0
NONCES_MAX = 100_000
_PURPOSE = "kotae peer requests"
_MALFORMED = "the signature of the replica is not valid"


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    """The signed values that are not part of the request itself."""

    slot: int  # of the recipient
    at: float  # seconds since 1970
    nonce: str
    body_hash: str  # SHA-256, hexadecimal
    principal: bytes | None


class VerifiedHead(msgspec.Struct, frozen=True):
    """What the signature of a request says. `principal` None: a ticket says who the caller is."""

    principal: bytes | None
    body_hash: str

    def check_body(self, body: bytes) -> None:
        """Raise `Forbidden` unless this is the body that was signed."""
        if hashlib.sha256(body).hexdigest() != self.body_hash:
            raise Forbidden(_MALFORMED)


class PeerSigner:
    """Signs requests to other replicas. `keys`: those of `KOTAE_SECRET_KEY`."""

    def __init__(self, keys: Sequence[bytes], clock: Callable[[], float] = time.time) -> None:
        self._key, self._clock = derive_key(keys[0], _PURPOSE), clock

    def sign(self, slot: int, request: PeerRequest) -> str:
        """Return the value of `HEADER` for a request to the replica with this slot."""
        envelope = msgspec.json.encode(
            _Envelope(
                slot,
                self._clock(),
                secrets.token_urlsafe(16),
                hashlib.sha256(request.body).hexdigest(),
                request.principal,
            )
        )
        mac = _compute_mac(self._key, envelope, request)
        return f"{_encode(envelope)}.{_encode(mac)}"


class PeerVerifier:
    """Verifies requests of other replicas to the one with this slot."""

    def __init__(
        self,
        slot: int,
        keys: Sequence[bytes],
        clock: Callable[[], float] = time.time,
        *,
        nonces_max: int = NONCES_MAX,
    ) -> None:
        self._slot, self._clock, self._nonces_max = slot, clock, nonces_max
        self._keys = [derive_key(key, _PURPOSE) for key in keys]
        self._nonces: OrderedDict[str, float] = OrderedDict()  # and the time of their arrival

    def verify(self, value: str, request: PeerRequest) -> "VerifiedHead":
        """Verify a request with this value of `HEADER`, before its body is read.

        Raises `Forbidden`, `Overloaded`, and `LoopDetected` for a request to another replica.
        """
        encoded, _, signature = value.partition(".")
        envelope, mac = _decode(encoded), _decode(signature)
        if not any(
            hmac.compare_digest(mac, _compute_mac(key, envelope, request)) for key in self._keys
        ):
            raise Forbidden(_MALFORMED)
        values = msgspec.json.decode(envelope, type=_Envelope)  # signed, so it has this form
        if values.slot != self._slot:
            raise LoopDetected("this is not the replica to which the request was sent")
        self._remember_nonce(values)
        return VerifiedHead(values.principal, values.body_hash)

    def _remember_nonce(self, values: _Envelope) -> None:
        now = self._clock()
        if abs(values.at - now) > CLOCK_SECONDS:
            raise Forbidden("the request of the replica is too old, or the clocks differ")
        while self._nonces and next(iter(self._nonces.values())) < now - 2 * CLOCK_SECONDS:
            self._nonces.popitem(last=False)
        if values.nonce in self._nonces:
            raise Forbidden("the request of the replica was repeated")
        if len(self._nonces) >= self._nonces_max:
            raise Overloaded("too many requests of other replicas")
        self._nonces[values.nonce] = now


def select_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a client that are forwarded and signed."""
    return {name: value for name in FORWARDED_HEADERS if (value := headers.get(name)) is not None}


def _compute_mac(key: bytes, envelope: bytes, request: PeerRequest) -> bytes:
    signed = [
        request.method,
        request.target,
        [[name, request.headers[name]] for name in FORWARDED_HEADERS if name in request.headers],
    ]
    return hmac.digest(key, envelope + b"\n" + msgspec.json.encode(signed), "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise Forbidden(_MALFORMED) from None
    if _encode(data) != text:  # the last character has bits that mean nothing
        raise Forbidden(_MALFORMED)
    return data
