"""Ends long-running work whose credential was revoked or has expired.

Answers in progress and open streams outlive the check of their credential. Both are registered here
with a callback that ends them; the reaper checks once a second whether the credentials are still
valid. Credentials that cannot be revoked are not registered.
"""

import time
from collections.abc import Callable

from service.core.auth.authenticator import Authenticator
from service.core.auth.principals import PERMANENT_CREDENTIALS, Principal


class RevocationMonitor:
    """The answers and readers in progress, one entry each."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[object, tuple[Principal, Callable[[], None]]] = {}

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def watch_principal(
        self, principal: Principal | None, end: Callable[[], None]
    ) -> Callable[[], None]:
        """Register work until the returned function is called. `end` must be idempotent."""
        if principal is None or principal.credential in PERMANENT_CREDENTIALS:
            return _do_nothing
        token = object()
        self._entries[token] = (principal, end)
        return lambda: self._entries.pop(token, None) and None

    async def check_principals(self, authenticator: Authenticator) -> int:
        """End work with an invalid credential; returns the number. Raises `DatabaseUnavailable`.

        Expired credentials are found without the database.
        """
        ended = self._end_expired()
        if not self._entries:
            return ended
        valid = await authenticator.check_validity(
            {
                (principal.credential, principal.user_id): principal
                for principal, _ in self._entries.values()
            }.values()
        )
        callbacks = [
            end
            for principal, end in self._entries.values()
            if not valid.get((principal.credential, principal.user_id), True)
        ]
        for end in callbacks:
            end()
        return ended + len(callbacks)

    def _end_expired(self) -> int:
        callbacks = [
            end for principal, end in self._entries.values() if principal.has_expired(self._clock())
        ]
        for end in callbacks:
            end()
        return len(callbacks)


def _do_nothing() -> None:
    """Nothing was registered."""
