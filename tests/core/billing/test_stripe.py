"""The client of Stripe: what its library sends, and what its errors mean."""

import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
import stripe

from service.core.billing.failures import FailureKind, StripeFailed
from service.core.billing.stripe import (
    TOLERANCE_SECONDS,
    StripeConnection,
    translate_error,
    verify_signature,
)
from service.core.errors import SignatureInvalid
from tests.billing import Clock
from tests.fakes.stripe import (
    BUSY,
    CUT,
    ERROR,
    ERROR_AFTERWARDS,
    KEY,
    LOST,
    METER,
    SECRET,
    Reply,
    StripeFake,
    sign,
)

CLOCK = Clock()


@pytest.fixture
async def fake() -> AsyncIterator[StripeFake]:
    """Stripe, with a clock."""
    async with StripeFake(Clock()) as fake:
        yield fake


async def send(fake: StripeFake, identifier: str = "i", key: str = KEY) -> StripeFailed | None:
    """Send an event; return the failure."""
    connection = StripeConnection(key, base_url=fake.url, seconds=5)
    timestamp = int(CLOCK.now.timestamp())
    try:
        await connection.send_meter_event(
            identifier, meter=METER, customer_id="cus_a", value="1.5", timestamp=timestamp
        )
    except StripeFailed as failure:
        return failure
    finally:
        await connection.aclose()
    return None


async def test_an_event_is_sent_as_documented(fake: StripeFake) -> None:
    """The library sends name, identifier, customer, value and time."""
    assert await send(fake) is None
    assert fake.requests == [
        {
            "event_name": METER,
            "identifier": "i",
            "payload[stripe_customer_id]": "cus_a",
            "payload[value]": "1.5",
            "timestamp": str(int(CLOCK.now.timestamp())),
        }
    ]
    assert fake.sum_nano_usd() == {("cus_a", int(CLOCK.now.timestamp()) // 3600): 1500}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (LOST, FailureKind.UNCERTAIN),
        (CUT, FailureKind.UNCERTAIN),
        (ERROR, FailureKind.UNCERTAIN),
        (ERROR_AFTERWARDS, FailureKind.UNCERTAIN),
        (Reply(409), FailureKind.UNCERTAIN),
        (Reply(500, headers={"stripe-should-retry": "false"}), FailureKind.REJECTED),
        (Reply(429, headers={"stripe-should-retry": "false"}), FailureKind.REJECTED),
        (Reply(400), FailureKind.REJECTED),
        (Reply(404), FailureKind.REJECTED),
        (Reply(400, headers={"stripe-should-retry": "true"}), FailureKind.REFUSED),
        (BUSY, FailureKind.REFUSED),
        (Reply(403), FailureKind.REFUSED),
    ],
)
async def test_failures_are_sent_once_and_classified(
    fake: StripeFake, reply: Reply, kind: FailureKind
) -> None:
    """No failure is repeated by the library, and each has a meaning for a repetition."""
    fake.replies.append(reply)
    failure = await send(fake)
    assert failure is not None
    assert failure.kind is kind
    assert len(fake.requests) == 1


async def test_a_known_identifier_is_recognized(fake: StripeFake) -> None:
    """The 400 for an identifier that was accepted before is not a rejection."""
    assert await send(fake) is None
    failure = await send(fake)
    assert failure is not None
    assert failure.kind is FailureKind.KNOWN


async def test_a_rate_limit_has_its_delay(fake: StripeFake) -> None:
    """`Retry-After` is read, and concerns all calls."""
    fake.replies.append(BUSY)
    failure = await send(fake)
    assert failure is not None
    assert (failure.retry_after_seconds, failure.is_general) == (7, True)


async def test_a_wrong_key_concerns_all_calls(fake: StripeFake) -> None:
    """Status 401 refuses the call, which can be repeated with another key."""
    failure = await send(fake, key="sk_test_wrong")
    assert failure is not None
    assert (failure.kind, failure.is_general) == (FailureKind.REFUSED, True)


async def test_no_connection_is_uncertain() -> None:
    """A server that is away is a failure like a lost response."""
    fake = StripeFake()
    fake.port = 9
    failure = await send(fake)
    assert failure is not None
    assert failure.kind is FailureKind.UNCERTAIN


def list_errors(kind: type[stripe.StripeError]) -> Iterator[type[stripe.StripeError]]:
    """All exceptions of the library."""
    yield kind
    for subclass in kind.__subclasses__():
        yield from list_errors(subclass)


@pytest.mark.parametrize("kind", list(list_errors(stripe.StripeError)))
@pytest.mark.parametrize("status", [None, 200, 400, 401, 402, 403, 404, 409, 429, 500, 503])
def test_every_exception_of_the_library_is_translated(
    kind: type[stripe.StripeError], status: int | None
) -> None:
    """Each exception with each status has a meaning; only client errors are final."""
    error = kind.__new__(kind)
    stripe.StripeError.__init__(error, "text", http_status=status)
    failure = translate_error(error)
    if status is None or issubclass(kind, stripe.APIConnectionError):
        assert failure.kind is FailureKind.UNCERTAIN
    else:
        assert (failure.kind is FailureKind.REJECTED) is (status in {400, 402, 404})


def test_there_are_many_exceptions() -> None:
    """The enumeration finds those of the library."""
    assert len(set(list_errors(stripe.StripeError))) > 20


async def test_a_thin_event_is_fetched(fake: StripeFake) -> None:
    """The complete event has the data that its notification lacks."""
    notification = fake.report_errors("evt_1", ["a", "b"])
    connection = StripeConnection(KEY, base_url=fake.url)
    event = await connection.fetch_event("evt_1")
    await connection.aclose()
    assert "data" not in notification
    samples = event["data"]["reason"]["error_types"][0]["sample_errors"]
    assert [sample["request"]["identifier"] for sample in samples] == ["a", "b"]


def test_signatures_are_verified() -> None:
    """The signature must be of the body, of the secret and recent."""
    body = b'{"id": "evt_1"}'
    verify_signature(body, sign(body), SECRET)
    late = time.time() - TOLERANCE_SECONDS - timedelta(seconds=5).total_seconds()
    for payload, header in (
        (body + b" ", sign(body)),
        (body, sign(body, "whsec_other")),
        (body, sign(body, at=late)),
        (body, ""),
        (body, "t=x,v1=y"),
        (b"\xff", sign(b"\xff")),
    ):
        with pytest.raises(SignatureInvalid):
            verify_signature(payload, header, SECRET)
