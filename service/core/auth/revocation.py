"""The watch: what goes on for long, and by whose credential, so that a revoked one ends it.

An answer in progress and a stream being read outlive the moment in which their credential was checked. Both are entered
here, with what ends them; the reaper looks once a second whether the credentials may still be used. Nothing is entered
for those that cannot be revoked.
"""

from collections.abc import Callable

from service.core.auth.authenticator import Authenticator
from service.core.auth.principals import Principal

FOR_GOOD = frozenset({"open", "secret"})  # credentials that end with the process


class RevocationMonitor:
    """What is in progress in this process; as many entries as answers and readers."""

    def __init__(self) -> None:
        self._entries: dict[object, tuple[Principal, Callable[[], None]]] = {}

    def __len__(self) -> int:
        """How much is in progress."""
        return len(self._entries)

    def watch_principal(
        self, principal: Principal | None, end: Callable[[], None]
    ) -> Callable[[], None]:
        """Something goes on until the returned function is called; `end` ends it, and may be called more than once."""
        if principal is None or principal.credential in FOR_GOOD:
            return _nothing
        token = object()
        self._entries[token] = (principal, end)
        return lambda: self._entries.pop(token, None) and None

    async def check_principals(self, door: Authenticator) -> int:
        """End what may not go on; returns how much that was. Raises `DatabaseUnavailable`."""
        if not self._entries:
            return 0
        valid = await door.is_still_valid(
            {(each.credential, each.user_id): each for each, _ in self._entries.values()}.values()
        )
        over = [
            end
            for each, end in self._entries.values()
            if not valid.get((each.credential, each.user_id), True)
        ]
        for end in over:
            end()
        return len(over)


def _nothing() -> None:
    """It was not entered."""
