"""Signatures of requests between replicas."""

import msgspec
import pytest

from service.core.errors import Forbidden, LoopDetected, Overloaded
from service.core.ports import PeerRequest
from service.core.replicas.signatures import (
    CLOCK_SECONDS,
    PeerSigner,
    PeerVerifier,
    select_headers,
)

KEY, OTHER = b"a" * 32, b"b" * 32
REQUEST = PeerRequest(
    method="GET",
    target="/ai/answers/x/events?ticket=t",
    headers={"last-event-id": "x.7"},
    body=b"body",
    principal=b'{"user_id":"u"}',
)


class Clock:
    """A clock set by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_caller_is_read_from_the_signature() -> None:
    """The recipient learns who the caller is, and that the body is the one that was signed."""
    head = PeerVerifier(3, [KEY]).verify(PeerSigner([KEY]).sign(3, REQUEST), REQUEST)
    head.check_body(b"body")

    assert head.principal == REQUEST.principal
    with pytest.raises(Forbidden):
        head.check_body(b"other")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "DELETE"},
        {"target": "/ai/answers/y/events?ticket=t"},
        {"target": "/ai/answers/x/events?ticket=u"},
        {"headers": {"last-event-id": "x.8"}},
        {"headers": {}},
        {"headers": {"last-event-id": "x.7", "idempotency-key": "k"}},
    ],
)
def test_a_changed_request_is_refused(change: dict[str, object]) -> None:
    """The signature covers method, path, query and forwarded headers."""
    value = PeerSigner([KEY]).sign(3, REQUEST)

    with pytest.raises(Forbidden):
        PeerVerifier(3, [KEY]).verify(value, msgspec.structs.replace(REQUEST, **change))


@pytest.mark.parametrize("value", ["", ".", "e30.e30", "é.é", "a" * 1000, "W10=.AAAA"])
def test_other_values_are_refused(value: str) -> None:
    """A value that is not a signature is refused in the same way."""
    with pytest.raises(Forbidden):
        PeerVerifier(3, [KEY]).verify(value, REQUEST)


def test_every_bit_of_a_signature_counts() -> None:
    """A changed character is refused wherever it is."""
    value = PeerSigner([KEY]).sign(3, REQUEST)
    for n, character in enumerate(value):
        changed = value[:n] + ("A" if character != "A" else "B") + value[n + 1 :]
        with pytest.raises(Forbidden):
            PeerVerifier(3, [KEY]).verify(changed, REQUEST)


def test_a_request_is_accepted_once_and_in_time() -> None:
    """A repeated request is refused as long as its time would be accepted."""
    clock = Clock()
    signer, verifier = PeerSigner([KEY], clock), PeerVerifier(3, [KEY], clock)
    value = signer.sign(3, REQUEST)
    verifier.verify(value, REQUEST)
    for seconds in (0, CLOCK_SECONDS, CLOCK_SECONDS, 1, 1000):
        clock.now += seconds
        with pytest.raises(Forbidden):
            verifier.verify(value, REQUEST)


@pytest.mark.parametrize("seconds", [-CLOCK_SECONDS - 1, CLOCK_SECONDS + 1])
def test_clocks_may_differ_by_seconds_only(seconds: float) -> None:
    """A request of another time is refused, in the past and in the future."""
    clock = Clock()
    value = PeerSigner([KEY], clock).sign(3, REQUEST)
    clock.now += seconds

    with pytest.raises(Forbidden, match="clocks"):
        PeerVerifier(3, [KEY], clock).verify(value, REQUEST)


def test_a_request_to_another_replica_is_a_loop() -> None:
    """The address of a replica may lead to another one that has started there."""
    with pytest.raises(LoopDetected):
        PeerVerifier(4, [KEY]).verify(PeerSigner([KEY]).sign(3, REQUEST), REQUEST)


def test_keys_are_rotated() -> None:
    """The first key signs, both are accepted."""
    for signing, accepting in (([KEY], [OTHER, KEY]), ([OTHER, KEY], [OTHER])):
        PeerVerifier(3, accepting).verify(PeerSigner(signing).sign(3, REQUEST), REQUEST)

    with pytest.raises(Forbidden):
        PeerVerifier(3, [KEY]).verify(PeerSigner([OTHER, KEY]).sign(3, REQUEST), REQUEST)


def test_remembered_requests_are_bounded() -> None:
    """Beyond the maximum requests are refused, until earlier ones are too old to be repeated."""
    clock = Clock()
    signer, verifier = PeerSigner([KEY], clock), PeerVerifier(3, [KEY], clock, nonces_max=2)
    for _ in range(2):
        verifier.verify(signer.sign(3, REQUEST), REQUEST)
    with pytest.raises(Overloaded):
        verifier.verify(signer.sign(3, REQUEST), REQUEST)
    clock.now += 2 * CLOCK_SECONDS + 1

    verifier.verify(signer.sign(3, REQUEST), REQUEST)


def test_only_known_headers_are_forwarded() -> None:
    """Credentials, cookies and headers of connections stay here."""
    headers = {"authorization": "Bearer x", "cookie": "a=b", "last-event-id": "x.7", "te": "gzip"}

    assert select_headers(headers) == {"last-event-id": "x.7"}
