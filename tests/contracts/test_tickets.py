"""The contract of `Tickets`."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.auth.tickets import REDEEMED_MAX, SignedTickets
from service.core.errors import Overloaded, TicketInvalid
from service.core.ports import TicketGrant

ANSWER = "01a2095b-6360-75d3-bf35-48878f818b4d"
OTHER = "01a2095b-6360-75d3-bf35-48878f818b4e"
GRANT = TicketGrant(ANSWER, "yuki", "yuki", "key:k", "k", 2_000.5)
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Clock:
    """A clock set by the test."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def create_tickets(
    clock: Clock,
    redeemed_max: int = REDEEMED_MAX,
    user_share: float = 1.0,
    keys: Sequence[bytes] = (),
) -> SignedTickets:
    """Tickets for 60 s, with 15 s for reconnects."""
    return SignedTickets(
        seconds=60,
        resume_seconds=15,
        clock=clock,
        wall_clock=lambda: 5_000.0,
        redeemed_max=redeemed_max,
        user_share=user_share,
        keys=keys,
    )


@pytest.mark.parametrize(
    "grant", [GRANT, TicketGrant(ANSWER, 'x"\n日本', None, "open"), TicketGrant(ANSWER, "", "", "")]
)
def test_ticket_carries_its_grant(grant: TicketGrant) -> None:
    """The grant comes back unchanged, and the ticket needs no escaping in a URL."""
    tickets = create_tickets(Clock())
    issued = tickets.issue(grant)

    assert tickets.redeem(issued.ticket, grant.answer_id).grant == grant
    assert issued.expires_at == 5_060
    assert issued.ticket.isascii()
    assert not set(issued.ticket) & set("&=?#/+% ")


def test_ticket_is_redeemed_once() -> None:
    """A second first use is refused until the ticket expires, and after that too."""
    clock = Clock()
    tickets = create_tickets(clock)
    ticket = tickets.issue(GRANT).ticket
    tickets.redeem(ticket, ANSWER)

    for seconds in (0, 60, 1, 1_000):
        clock.now += seconds
        with pytest.raises(TicketInvalid):
            tickets.redeem(ticket, ANSWER)


def test_unused_ticket_expires() -> None:
    """A ticket is redeemed within 60 s, and not later."""
    clock = Clock()
    tickets = create_tickets(clock)
    in_time, late = tickets.issue(GRANT).ticket, tickets.issue(GRANT).ticket
    clock.now += 60
    tickets.redeem(in_time, ANSWER)
    clock.now += 0.001

    with pytest.raises(TicketInvalid):
        tickets.redeem(late, ANSWER)


@pytest.mark.parametrize("seconds", [0, 59, 61, 3_600])
def test_unused_ticket_is_invalid_for_a_reconnect(seconds: float) -> None:
    """A ticket that was never redeemed serves no reconnect, before its expiry and after."""
    clock = Clock()
    tickets = create_tickets(clock)
    ticket = tickets.issue(GRANT).ticket
    clock.now += seconds

    for seq in (0, 1):
        with pytest.raises(TicketInvalid):
            tickets.resume(ticket, ANSWER, seq)


@pytest.mark.parametrize(("seq", "valid"), [(0, True), (7, True), (8, False), (-1, False)])
def test_reconnect_needs_an_event_that_was_sent(seq: int, valid: bool) -> None:
    """A reconnect after an event that no reader of the ticket was sent is refused."""
    tickets = create_tickets(Clock())
    ticket = tickets.issue(GRANT).ticket
    redeemed = tickets.redeem(ticket, ANSWER)
    for sent in (5, 7, 3):
        redeemed.record_sent(sent)

    if valid:
        assert tickets.resume(ticket, ANSWER, seq).grant == GRANT
    else:
        with pytest.raises(TicketInvalid):
            tickets.resume(ticket, ANSWER, seq)


def test_redeemed_ticket_without_events_serves_no_reconnect() -> None:
    """If nothing was sent, `{id}.0` is not a position to continue from."""
    tickets = create_tickets(Clock())
    ticket = tickets.issue(GRANT).ticket
    tickets.redeem(ticket, ANSWER)

    with pytest.raises(TicketInvalid):
        tickets.resume(ticket, ANSWER, 0)


def test_reconnect_is_in_time_after_the_last_reader() -> None:
    """A ticket is valid while it has a reader, and 15 s after the last one has left."""
    clock = Clock()
    tickets = create_tickets(clock)
    ticket = tickets.issue(GRANT).ticket
    redeemed = tickets.redeem(ticket, ANSWER)
    redeemed.record_sent(0)
    redeemed.add_reader()
    redeemed.add_reader()
    clock.now += 300
    redeemed.remove_reader()
    clock.now += 300
    tickets.resume(ticket, ANSWER, 0)
    redeemed.remove_reader()
    clock.now += 15
    tickets.resume(ticket, ANSWER, 0)
    clock.now += 0.001

    with pytest.raises(TicketInvalid):
        tickets.resume(ticket, ANSWER, 0)


def test_reconnect_is_in_time_after_the_end_of_the_answer() -> None:
    """A ticket is valid 15 s after the end of its answer, also if its reader left before."""
    clock = Clock()
    tickets = create_tickets(clock)
    ticket = tickets.issue(GRANT).ticket
    redeemed = tickets.redeem(ticket, ANSWER)
    redeemed.record_sent(0)
    clock.now += 14
    redeemed.record_end()
    clock.now += 15
    tickets.resume(ticket, ANSWER, 0)
    clock.now += 0.001

    with pytest.raises(TicketInvalid):
        tickets.resume(ticket, ANSWER, 0)


def test_ticket_is_for_one_answer() -> None:
    """Neither a first use nor a reconnect opens another answer."""
    tickets = create_tickets(Clock())
    ticket = tickets.issue(GRANT).ticket
    with pytest.raises(TicketInvalid):
        tickets.redeem(ticket, OTHER)
    tickets.redeem(ticket, ANSWER).record_sent(0)
    with pytest.raises(TicketInvalid):
        tickets.resume(ticket, OTHER, 0)


@given(at=st.integers(0, 10**6), put=st.characters(), other=st.text(max_size=80))
def test_changed_ticket_is_invalid(at: int, put: str, other: str) -> None:
    """Any other text is refused, also a ticket with one changed character."""
    tickets = create_tickets(Clock())
    ticket = tickets.issue(GRANT).ticket
    at %= len(ticket)
    for text in (ticket[:at] + put + ticket[at + 1 :], other, ticket[:-1], ticket + "="):
        if text != ticket:
            with pytest.raises(TicketInvalid):
                tickets.redeem(text, ANSWER)


def test_ticket_has_one_spelling() -> None:
    """Bits of the last base64 character that decoding ignores must be zero."""
    tickets = create_tickets(Clock())
    ticket = tickets.issue(GRANT).ticket
    for last in BASE64:
        if last != ticket[-1]:
            with pytest.raises(TicketInvalid):
                tickets.redeem(ticket[:-1] + last, ANSWER)


def test_ticket_is_invalid_in_another_process() -> None:
    """Another process does not know whether a ticket was redeemed, so it accepts none."""
    clock = Clock()
    ticket = create_tickets(clock).issue(GRANT).ticket
    other = create_tickets(clock)

    with pytest.raises(TicketInvalid):
        other.redeem(ticket, ANSWER)
    with pytest.raises(TicketInvalid):
        other.resume(ticket, ANSWER, 0)


def test_another_replica_checks_a_ticket_but_does_not_redeem_it() -> None:
    """Replicas have the same keys; only the one that issued a ticket accepts it."""
    clock = Clock()
    ticket = create_tickets(clock, keys=[b"a" * 32]).issue(GRANT).ticket
    other = create_tickets(clock, keys=[b"a" * 32])
    other.check(ticket, ANSWER)

    with pytest.raises(TicketInvalid):
        other.redeem(ticket, ANSWER)
    with pytest.raises(TicketInvalid):
        other.check(ticket, OTHER)
    with pytest.raises(TicketInvalid):
        create_tickets(clock).check(ticket, ANSWER)


def test_keys_are_rotated() -> None:
    """The first key signs; tickets that were signed with the second one are valid."""
    clock = Clock()
    old, new = b"a" * 32, b"b" * 32
    before, after = create_tickets(clock, keys=[old]), create_tickets(clock, keys=[new, old])
    after.check(before.issue(GRANT).ticket, ANSWER)
    create_tickets(clock, keys=[new]).check(after.issue(GRANT).ticket, ANSWER)

    with pytest.raises(TicketInvalid):
        before.check(after.issue(GRANT).ticket, ANSWER)


def test_redeemed_tickets_are_bounded() -> None:
    """Beyond the maximum a first use is refused, until earlier tickets can no longer be used."""
    clock = Clock()
    tickets = create_tickets(clock, redeemed_max=3)
    for _ in range(3):
        tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)
    with pytest.raises(Overloaded):
        tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)
    clock.now += 61
    tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)

    assert len(tickets) == 2


def test_ticket_with_a_reader_is_not_forgotten() -> None:
    """Eviction keeps tickets that are being read, however old they are."""
    clock = Clock()
    tickets = create_tickets(clock, redeemed_max=3)
    ticket = tickets.issue(GRANT).ticket
    redeemed = tickets.redeem(ticket, ANSWER)
    redeemed.add_reader()
    redeemed.record_sent(0)
    for _ in range(10):
        clock.now += 100
        tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)

    assert tickets.resume(ticket, ANSWER, 0) is redeemed


def test_tickets_of_one_user_leave_room_for_others() -> None:
    """A user with too many tickets in use is refused with their own number; others are not."""
    clock = Clock()
    tickets = create_tickets(clock, redeemed_max=4, user_share=0.5)
    other = msgspec.structs.replace(GRANT, user_id="other")
    for _ in range(2):
        tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)
    with pytest.raises(Overloaded, match="you have 2 tickets in use"):
        tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)
    tickets.redeem(tickets.issue(other).ticket, ANSWER)
    clock.now += 61
    tickets.redeem(tickets.issue(GRANT).ticket, ANSWER)

    assert len(tickets) <= 4
