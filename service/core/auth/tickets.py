"""Tickets that carry what they say, signed: nothing is stored when one is issued, and a restart does not lose it.

The key is made at the first start and kept in the data folder, so that a browser whose stream was cut by a restart can
go on with the ticket it has. What has to be remembered is only which tickets were used, and only while another first use
would be possible: for `seconds`. A ticket that this process cannot know to be unused, because it was issued before the
process began, is good for a reconnect and not for a first use.
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

USED_MAX = 200_000  # used tickets remembered: some 3,000 new ones a second
_VERSION = 1


class SignedTickets:
    """See `Tickets`. `seconds`: time to the first use; `resume_seconds`: how long a reconnect may present it again.

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
            key, salt="kotae stream ticket", signer_kwargs={"digest_method": _sha256}
        )
        self._seconds = seconds
        self._resume_seconds = resume_seconds
        self._clock = clock
        self._began = clock()
        # Nonces. The cache drops an entry at the end of its interval, when a ticket is still valid: hence the second.
        self._used: TTLCache[str, None] = TTLCache(used_max, seconds + 1, timer=clock)

    def issue(self, grant: TicketGrant) -> IssuedTicket:
        """See `Tickets.issue`."""
        at = self._clock()
        nonce = secrets.token_urlsafe(16)
        ticket = self._signer.dumps(
            [_VERSION, nonce, at, grant.answer_id, grant.user_id, grant.sees]
        )
        return IssuedTicket(
            ticket if isinstance(ticket, str) else ticket.decode(), at + self._seconds
        )

    def redeem(self, ticket: str, answer_id: str, *, resuming: bool) -> TicketGrant:
        """See `Tickets.redeem`."""
        try:
            version, nonce, at, *rest = self._signer.loads(ticket)
            grant = msgspec.convert(rest, TicketGrant)
        except (BadData, ValueError) as error:  # msgspec's errors are ValueErrors
            raise TicketInvalid("this is not a ticket of this service") from error
        now = self._clock()
        if version != _VERSION or grant.answer_id != answer_id or now > at + self._resume_seconds:
            raise TicketInvalid("this ticket is for another answer, or too old")
        if not resuming:
            self._use(nonce, at, now)
        return grant

    def _use(self, nonce: str, at: float, now: float) -> None:
        if now > at + self._seconds or at < self._began:
            raise TicketInvalid(
                "this ticket has expired: it is for one use, soon after it was given"
            )
        if nonce in self._used:
            raise TicketInvalid(
                "this ticket was used already; only a reconnect with Last-Event-ID may present it again"
            )
        if (
            len(self._used) >= self._used.maxsize
        ):  # never evict: an evicted ticket could be used again
            raise Overloaded("too many tickets at once")
        self._used[nonce] = None


def load_ticket_key(file: Path) -> bytes:
    """The signing key in this file, made at the first start and readable by its owner alone."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    if not file.exists():
        new.touch(mode=0o600)
        new.write_bytes(secrets.token_bytes(32))
        try:
            os.link(new, file)  # whole or not at all, and the first of two processes wins
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_bytes()


def _sha256(data: bytes = b"") -> Any:
    return hashlib.sha256(data)
