"""Principals: the authenticated caller and what it may do. Pure.

A role determines whose data a principal may access (a user their own, an admin all), a scope which
kind of data. A key never has more of either than its creator.
"""

from enum import StrEnum

import msgspec

from service.core.audit_log import Actor
from service.core.errors import Forbidden
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.pricing import ChargeTerms


class Role(StrEnum):
    """Whose data a principal may access."""

    USER = "user"  # their own and shared data
    ADMIN = "admin"  # everyone's; may make requests for other users


class Scope(StrEnum):
    """What a credential may be used for."""

    ASK = "ask"  # create, read and stop answers
    DOCUMENTS = "documents"  # upload, list, search and delete documents
    LOGS = "logs"  # read logs, usage and quotas
    KEYS = "keys"  # create and revoke keys


ALL_SCOPES = frozenset(Scope)
PERMANENT_CREDENTIALS = frozenset({"open", "secret"})  # cannot be revoked while the process runs


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The authenticated caller.

    `credential` identifies the credential (`key:<id>`, `session:<hash>`, `jwt`, `secret`, `open`,
    or `cli`), `ends_at` is its expiry (seconds since 1970), `origin_ends_at` the expiry of the key
    or token that a session was exchanged for. `key_lineage` is the first of the keys that it was
    rotated from; quotas are charged to it. `limits` are those of the user, `key_limits` those of
    the key; None means unlimited. `terms`: what the user pays, by the plan; None: nothing.
    """

    user_id: str
    role: Role
    scopes: frozenset[Scope] = ALL_SCOPES
    credential: str
    key_id: str | None = None
    key_lineage: str | None = None
    ends_at: float | None = None
    origin_ends_at: float | None = None
    limits: QuotaLimits | None = None
    key_limits: QuotaLimits | None = None
    terms: ChargeTerms | None = None

    @property
    def is_admin(self) -> bool:
        """Whether all data is visible."""
        return self.role is Role.ADMIN

    @property
    def may_impersonate(self) -> bool:
        """Whether `user_id` in a body is accepted."""
        return self.is_admin

    @property
    def visible_user_id(self) -> str | None:
        """The user whose documents and logs are visible; None means everyone's."""
        return None if self.is_admin else self.user_id

    @property
    def actor(self) -> Actor:
        """The principal in the audit log."""
        return Actor(self.user_id, self.credential.partition(":")[0], self.key_id)

    @property
    def quota_subjects(self) -> tuple[QuotaSubject, ...]:
        """The subjects charged for the principal's own requests."""
        return (QuotaSubject.for_user(self.user_id, self.limits, self.terms), *self.key_subjects)

    @property
    def key_subjects(self) -> tuple[QuotaSubject, ...]:
        """The subject of the API key, if one was used."""
        return (
            (QuotaSubject.for_key(self.key_lineage or self.key_id, self.key_limits),)
            if self.key_id is not None
            else ()
        )

    @property
    def is_session(self) -> bool:
        """Whether the credential is a browser session."""
        return self.credential.startswith("session:")

    @property
    def delegation_ends_at(self) -> float | None:
        """The latest expiry of keys that this principal creates; None: no limit."""
        return self.origin_ends_at if self.is_session else self.ends_at

    def has_expired(self, now: float) -> bool:
        """Whether the credential has expired at this time (seconds since 1970)."""
        return self.ends_at is not None and self.ends_at <= now

    def require_scope(self, role: Role, scope: Scope) -> None:
        """Require the role and scope of a route. Raises `Forbidden`."""
        if role is Role.ADMIN and not self.is_admin:
            raise Forbidden("this requires an admin")
        if scope not in self.scopes:
            raise Forbidden(f"this credential lacks the scope {scope.value!r}")


LOCAL = Principal(user_id="local", role=Role.ADMIN, credential="open")
BOOTSTRAP = Principal(user_id="admin", role=Role.ADMIN, credential="secret")
COMMAND_LINE = Principal(user_id="cli", role=Role.ADMIN, credential="cli")
