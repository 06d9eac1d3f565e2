"""Signed, self-contained tickets: issuing stores nothing, and a restart does not invalidate them.

The signing key is created at the first start and kept in the data directory, so that a browser
whose stream was cut by a restart can continue with its ticket. Only used tickets are remembered,
and only while a second first use would be possible: for `seconds`. A ticket issued before this
process started may have been used: it is valid for a reconnect, not for a first use.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cachetools import TTLCache
from itsdangerous import BadData, URLSafeSerializer

from service.core.errors import Overloaded, TicketInvalid
from service.core.ports import IssuedTicket, TicketGrant

USED_MAX = 200_000  # used tickets remembered, about 3,000 new ones per second
_VERSION = 1


class SignedTickets:
    """See `Tickets`. `seconds`: until the first use; `resume_seconds`: for reconnects.

    `used_max`: used tickets remembered at once; beyond it a first use is refused.
    """

    def __init__(
        self,
        key: bytes,
        *,
        seconds: float,
        resume_seconds: float,
        clock: Callable[[], float] = time.time,
        used_max: int = USED_MAX,
    ) -> None:
        self._signer = URLSafeSerializer(
            key, salt="kotae stream ticket", signer_kwargs={"digest_method": _hash_sha256}
        )
        self._seconds = seconds
        self._resume_seconds = resume_seconds
        self._clock = clock
        self._began = clock()
        # Nonces. The cache drops an entry at the end of its interval, when a ticket is still valid.
        self._used: TTLCache[str, None] = TTLCache(used_max, seconds + 1, timer=clock)

    def issue(self, grant: TicketGrant) -> IssuedTicket:
        """See `Tickets.issue`."""
        now = self._clock()
        nonce = secrets.token_urlsafe(16)
        ticket = self._signer.dumps(
            [_VERSION, nonce, now, grant.answer_id, grant.user_id, grant.sees]
        )
        return IssuedTicket(
            ticket if isinstance(ticket, str) else ticket.decode(), now + self._seconds
        )

    def redeem(self, ticket: str, answer_id: str, *, resuming: bool) -> TicketGrant:
        """See `Tickets.redeem`."""
        try:
            version, nonce, issued_at, *rest = self._signer.loads(ticket)
            grant = msgspec.convert(rest, TicketGrant)
        except (BadData, ValueError) as error:  # msgspec errors are ValueErrors
            raise TicketInvalid("the ticket was not issued by this service") from error
        now = self._clock()
        expired = now > issued_at + self._resume_seconds
        if version != _VERSION or grant.answer_id != answer_id or expired:
            raise TicketInvalid("the ticket is for another answer, or too old")
        if not resuming:
            self._mark_used(nonce, issued_at, now)
        return grant

    def _mark_used(self, nonce: str, issued_at: float, now: float) -> None:
        if now > issued_at + self._seconds or issued_at < self._began:
            raise TicketInvalid("the ticket has expired: it must be used soon after it was issued")
        if nonce in self._used:
            raise TicketInvalid(
                "the ticket was used already: only a reconnect with Last-Event-ID may use it again"
            )
        if (
            len(self._used) >= self._used.maxsize
        ):  # never evict: an evicted ticket could be used again
            raise Overloaded("too many tickets in use")
        self._used[nonce] = None


def load_ticket_key(file: Path) -> bytes:
    """The signing key in this file; created at the first start, readable only by its owner."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    if not file.exists():
        new.touch(mode=0o600)
        new.write_bytes(secrets.token_bytes(32))
        try:
            os.link(new, file)  # atomic, and the first of two processes wins
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_bytes()


def _hash_sha256(data: bytes = b"") -> Any:
    return hashlib.sha256(data)
