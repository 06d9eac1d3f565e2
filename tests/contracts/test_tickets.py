"""Contract of `Tickets`, for every implementation."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.auth.tickets import USED_MAX, SignedTickets, load_ticket_key
from service.core.errors import Overloaded, TicketInvalid
from service.core.ports import TicketGrant

GRANT = TicketGrant("01a2095b-6360-75d3-bf35-48878f818b4d", "yuki", "yuki")
OTHER = "01a2095b-6360-75d3-bf35-48878f818b4e"


class Clock:
    """A manual clock."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, key: bytes = b"k" * 32, used_max: int = USED_MAX) -> SignedTickets:
    """Create tickets for 60 s that allow reconnects for an hour."""
    return SignedTickets(key, seconds=60, resume_seconds=3600, clock=clock, used_max=used_max)


def test_a_ticket_grants_what_it_was_issued_for() -> None:
    """The answer, the user and the view are returned unchanged."""
    for grant in (GRANT, TicketGrant(GRANT.answer_id, 'x"\n日本', None)):
        room = make(Clock())
        issued = room.issue(grant)
        assert room.redeem(issued.ticket, grant.answer_id, resuming=False) == grant
        assert issued.expires_at == 1_060
        assert issued.ticket.isascii()
        assert not set(issued.ticket) & set("&=?#/+% ")


def test_a_ticket_is_used_once() -> None:
    """A second first use is refused; reconnects are unlimited."""
    room = make(Clock())
    ticket = room.issue(GRANT).ticket
    room.redeem(ticket, GRANT.answer_id, resuming=False)

    with pytest.raises(TicketInvalid, match="used already"):
        room.redeem(ticket, GRANT.answer_id, resuming=False)
    for _ in range(3):
        assert room.redeem(ticket, GRANT.answer_id, resuming=True) == GRANT


@pytest.mark.parametrize(("resuming", "last"), [(False, 60), (True, 3600)])
def test_a_ticket_expires(resuming: bool, last: float) -> None:
    """It is valid until its time is over, and not after it."""
    clock = Clock()
    room = make(clock)
    in_time, late = room.issue(GRANT).ticket, room.issue(GRANT).ticket
    clock.now += last
    assert room.redeem(in_time, GRANT.answer_id, resuming=resuming) == GRANT
    clock.now += 0.001

    with pytest.raises(TicketInvalid):
        room.redeem(late, GRANT.answer_id, resuming=resuming)


def test_a_ticket_is_for_one_answer() -> None:
    """It grants no other answer, not for a reconnect either."""
    room = make(Clock())
    for resuming in (True, False):
        with pytest.raises(TicketInvalid):
            room.redeem(room.issue(GRANT).ticket, OTHER, resuming=resuming)


@given(at=st.integers(0, 10**6), put=st.characters(), other=st.text(max_size=80))
def test_a_changed_ticket_is_refused(at: int, put: str, other: str) -> None:
    """Any other text is refused, including a ticket with one changed character."""
    room = make(Clock())
    ticket = room.issue(GRANT).ticket
    at %= len(ticket) - 1  # the last character has unused bits, whose change has no effect
    for text in (ticket[:at] + put + ticket[at + 1 :], other, ticket[:-1]):
        if text != ticket:
            with pytest.raises(TicketInvalid):
                room.redeem(text, GRANT.answer_id, resuming=True)


def test_a_ticket_survives_a_restart_only_for_reconnects() -> None:
    """A new process with the same key accepts reconnects, but no first use of earlier tickets."""
    clock = Clock()
    ticket = make(clock).issue(GRANT).ticket
    clock.now += 1
    later = make(clock)

    assert later.redeem(ticket, GRANT.answer_id, resuming=True) == GRANT
    with pytest.raises(TicketInvalid):
        later.redeem(ticket, GRANT.answer_id, resuming=False)
    with pytest.raises(TicketInvalid):
        make(clock, b"another key" * 3).redeem(ticket, GRANT.answer_id, resuming=True)


def test_a_used_ticket_is_refused_until_it_expires() -> None:
    """A used ticket is refused until the last moment at which an unused one is valid."""
    clock = Clock()
    tickets = make(clock)
    ticket = tickets.issue(GRANT).ticket
    tickets.redeem(ticket, GRANT.answer_id, resuming=False)
    clock.now += 60

    with pytest.raises(TicketInvalid, match="used already"):
        tickets.redeem(ticket, GRANT.answer_id, resuming=False)


def test_used_tickets_are_bounded() -> None:
    """Above the maximum of used tickets a first use is refused, until earlier ones expire."""
    clock = Clock()
    room = make(clock, used_max=3)
    for _ in range(3):
        room.redeem(room.issue(GRANT).ticket, GRANT.answer_id, resuming=False)
    with pytest.raises(Overloaded):
        room.redeem(room.issue(GRANT).ticket, GRANT.answer_id, resuming=False)
    clock.now += 62

    assert room.redeem(room.issue(GRANT).ticket, GRANT.answer_id, resuming=False) == GRANT
    assert len(room._used) == 1


def test_the_key_is_created_once_and_is_private(tmp_path: Path) -> None:
    """The second start reads the key of the first; other users cannot."""
    file = tmp_path / "tickets.key"

    assert load_ticket_key(file) == load_ticket_key(file)
    assert len(load_ticket_key(file)) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
