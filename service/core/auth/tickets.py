"""Signed stream tickets: issuing stores nothing, redeeming is remembered in this process.

A ticket carries its grant. The first use must follow within `seconds`. A reconnect is accepted only
for a ticket that was redeemed in this process, within `resume_seconds` of its last reader or of the
end of the answer, and after an event that was sent to one of its readers. Times are monotonic, so a
change of the system time neither extends nor ends a ticket.

A ticket is redeemed in the process that issued it, which is the owner of its answer. Other replicas
have the same keys and check the signature. Tickets of an earlier process are invalid, because it is
unknown whether they were redeemed.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from itsdangerous import BadData, URLSafeSerializer
from itsdangerous.encoding import base64_decode, base64_encode

from service.core.errors import Overloaded, TicketInvalid
from service.core.fair_share import SharedLimit
from service.core.ports import IssuedTicket, TicketGrant
from service.core.secret_keys import derive_key

REDEEMED_MAX = 200_000  # redeemed tickets remembered, about 3,000 new ones per second
EVICTIONS = 2  # old tickets examined per redemption, so their number shrinks while tickets are used
EVICTIONS_MAX = 1000  # examined when the limit is reached
_VERSION = 3
_PURPOSE = "kotae stream tickets"


class TicketRecord:
    """A ticket after its first use: see `ports.RedeemedTicket`."""

    def __init__(
        self, grant: TicketGrant, clock: Callable[[], float], *, once_until: float
    ) -> None:
        self.grant = grant
        self.once_until = once_until  # until then a second first use would be possible
        self._clock = clock
        self._readers = 0
        self._sent_seq = -1
        self._active_at = clock()

    def add_reader(self) -> None:
        """See `ports.RedeemedTicket.add_reader`."""
        self._readers += 1

    def remove_reader(self) -> None:
        """See `ports.RedeemedTicket.remove_reader`."""
        self._readers -= 1
        self._active_at = self._clock()

    def record_sent(self, seq: int) -> None:
        """See `ports.RedeemedTicket.record_sent`."""
        self._sent_seq = max(self._sent_seq, seq)

    def record_end(self) -> None:
        """See `ports.RedeemedTicket.record_end`."""
        self._active_at = self._clock()

    def was_sent(self, seq: int) -> bool:
        """Whether an event up to this position was sent to a reader."""
        return 0 <= seq <= self._sent_seq

    def is_active(self, resume_seconds: float) -> bool:
        """Whether a reconnect is in time."""
        return self._readers > 0 or self._clock() <= self._active_at + resume_seconds


class SignedTickets:
    """See `Tickets`. `seconds`: until the first use; `resume_seconds`: for reconnects.

    `keys`: of all replicas, the signing one first; none: a random one of this process.
    `clock` is monotonic, `wall_clock` is only for the expiry that callers see. `redeemed_max`:
    redeemed tickets remembered at once, beyond which a first use is refused. One user can have the
    share `user_share` of them.
    """

    def __init__(
        self,
        *,
        seconds: float,
        resume_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        redeemed_max: int = REDEEMED_MAX,
        user_share: float = 1.0,
        keys: Sequence[bytes] = (),
    ) -> None:
        self._issuer = secrets.token_urlsafe(8)
        self._signer = URLSafeSerializer(
            [derive_key(key, _PURPOSE) for key in reversed(keys)] or secrets.token_bytes(32),
            salt="kotae stream ticket",
            signer_kwargs={"digest_method": _hash_sha256},
        )
        self._seconds, self._resume_seconds = seconds, resume_seconds
        self._clock, self._wall_clock = clock, wall_clock
        self._in_use = SharedLimit(redeemed_max, "tickets in use", user_share)
        self._redeemed: OrderedDict[str, TicketRecord] = OrderedDict()  # by nonce

    def __len__(self) -> int:
        """Number of redeemed tickets remembered."""
        return len(self._redeemed)

    def issue(self, grant: TicketGrant) -> IssuedTicket:
        """See `Tickets.issue`."""
        nonce = secrets.token_urlsafe(16)
        ticket = self._sign([_VERSION, self._issuer, nonce, self._clock(), grant])
        return IssuedTicket(ticket, self._wall_clock() + self._seconds)

    def check(self, ticket: str, answer_id: str) -> TicketGrant:
        """See `Tickets.check`."""
        return self._verify(ticket, answer_id)[3]

    def redeem(self, ticket: str, answer_id: str) -> TicketRecord:
        """See `Tickets.redeem`."""
        nonce, issued_at, grant = self._verify_own(ticket, answer_id)
        if nonce in self._redeemed:
            raise TicketInvalid(
                "the ticket was used already: only a reconnect with Last-Event-ID may use it again"
            )
        if self._clock() > issued_at + self._seconds:
            raise TicketInvalid("the ticket has expired: it must be used soon after it was issued")
        self._evict_old(EVICTIONS)
        try:
            self._in_use.require(grant.user_id)
        except Overloaded:
            self._evict_old(EVICTIONS_MAX)
        self._in_use.take(grant.user_id)
        redeemed = TicketRecord(grant, self._clock, once_until=issued_at + self._seconds)
        self._redeemed[nonce] = redeemed
        return redeemed

    def resume(self, ticket: str, answer_id: str, seq: int) -> TicketRecord:
        """See `Tickets.resume`."""
        nonce, _, _ = self._verify_own(ticket, answer_id)
        redeemed = self._redeemed.get(nonce)
        if redeemed is None or not redeemed.is_active(self._resume_seconds):
            raise TicketInvalid("the ticket has expired, or was not used before this reconnect")
        if not redeemed.was_sent(seq):
            raise TicketInvalid("the ticket is for a reconnect after an event that was received")
        return redeemed

    def _verify_own(self, ticket: str, answer_id: str) -> tuple[str, float, TicketGrant]:
        """Returns (nonce, time of issue, grant). Raises `TicketInvalid`."""
        issuer, nonce, issued_at, grant = self._verify(ticket, answer_id)
        if issuer != self._issuer:
            raise TicketInvalid("the ticket was not issued by this process")
        return nonce, issued_at, grant

    def _verify(self, ticket: str, answer_id: str) -> tuple[str, str, float, TicketGrant]:
        """Returns (issuer, nonce, time of issue, grant). Raises `TicketInvalid`."""
        try:
            version, issuer, nonce, issued_at, fields = self._signer.loads(ticket)
            grant = msgspec.convert(fields, TicketGrant)
        except (BadData, ValueError, TypeError) as error:  # msgspec errors are ValueErrors
            raise TicketInvalid("the ticket was not issued by this process") from error
        if version != _VERSION or grant.answer_id != answer_id:
            raise TicketInvalid("the ticket is for another answer")
        # Decoding ignores some bits of base64, so other texts would be the same ticket.
        signature = ticket.rpartition(".")[2]
        if base64_encode(base64_decode(signature)).decode() != signature:
            raise TicketInvalid("the ticket is not in canonical form")
        return issuer, nonce, issued_at, grant

    def _sign(self, payload: list[Any]) -> str:
        ticket = self._signer.dumps(msgspec.to_builtins(payload))
        return ticket if isinstance(ticket, str) else ticket.decode()

    def _evict_old(self, count: int) -> None:
        """Examine the oldest tickets, and forget those that can no longer be used."""
        now = self._clock()
        for _ in range(min(count, len(self._redeemed))):
            nonce, redeemed = self._redeemed.popitem(last=False)
            if now <= redeemed.once_until or redeemed.is_active(self._resume_seconds):
                self._redeemed[nonce] = redeemed
            else:
                self._in_use.release(redeemed.grant.user_id)


def _hash_sha256(data: bytes = b"") -> Any:
    return hashlib.sha256(data)
