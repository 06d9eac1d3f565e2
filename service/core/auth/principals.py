"""Principals: who is asking, and what they may. Pure.

A role says whose things one may touch (a user one's own, an admin everybody's), a scope what kind of things. A key never
has more of either than whoever made it.
"""

from enum import StrEnum

import msgspec

from service.core.errors import Forbidden
from service.core.ports import QuotaLimits, QuotaSubject


class Role(StrEnum):
    """Whose things a principal may touch."""

    USER = "user"  # their own, and what is shared
    ADMIN = "admin"  # everybody's; may ask on behalf of others


class Scope(StrEnum):
    """What a credential may be used for."""

    ASK = "ask"  # answers: asking, following, stopping
    DOCUMENTS = "documents"  # giving, listing, searching and deleting texts
    LOGS = "logs"  # the account: logs, usage, quotas
    KEYS = "keys"  # making and revoking keys


EVERYTHING = frozenset(Scope)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking.

    `credential` says by what (`key:<id>`, `session:<hash>`, `jwt`, `secret`, `open`), `ends_at` until when (seconds since
    1970). `limits` are the user's, `key_limits` those of the key alone; None: there are none.
    """

    user_id: str
    role: Role
    scopes: frozenset[Scope] = EVERYTHING
    credential: str
    key_id: str | None = None
    ends_at: float | None = None
    limits: QuotaLimits | None = None
    key_limits: QuotaLimits | None = None

    @property
    def is_admin(self) -> bool:
        """Whether everything is theirs to see."""
        return self.role is Role.ADMIN

    @property
    def on_behalf(self) -> bool:
        """Whether a `user_id` in a body is believed."""
        return self.is_admin

    @property
    def visible_user_id(self) -> str | None:
        """Whose documents and logs are this principal's to see; None is everyone's."""
        return None if self.is_admin else self.user_id

    @property
    def quota_subjects(self) -> tuple[QuotaSubject, ...]:
        """Who is charged for what this principal asks for themselves."""
        return (QuotaSubject.for_user(self.user_id, self.limits), *self.key_subjects)

    @property
    def key_subjects(self) -> tuple[QuotaSubject, ...]:
        """The key, if one asks."""
        return (
            (QuotaSubject.for_key(self.key_id, self.key_limits),) if self.key_id is not None else ()
        )

    def require_scope(self, role: Role, scope: Scope) -> None:
        """Raises `Forbidden` if a route that needs these is not for this principal."""
        if role is Role.ADMIN and not self.is_admin:
            raise Forbidden("this is for admins")
        if scope not in self.scopes:
            raise Forbidden(f"this credential has not the scope {scope.value!r}")


LOCAL = Principal(user_id="local", role=Role.ADMIN, credential="open")
BOOTSTRAP = Principal(user_id="admin", role=Role.ADMIN, credential="secret")
