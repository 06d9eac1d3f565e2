"""Failures of calls to Stripe, by what they mean for a repetition. Without the library."""

from enum import StrEnum


class FailureKind(StrEnum):
    """What is known about a failed call."""

    KNOWN = "known"  # the identifier was accepted before: the event is delivered
    REFUSED = "refused"  # not processed (rate limit, key): it may be repeated at any time
    UNCERTAIN = "uncertain"  # it may have been processed: repeat only while identifiers are known
    REJECTED = "rejected"  # not processed, and a repetition would not be either


ABSENT = "resource_missing"  # code of an object that does not exist


class StripeFailed(Exception):
    """A call failed. `retry_after_seconds`: the delay that Stripe asks for, if any.

    `is_general`: other calls would fail as well, such as with a wrong key or at a rate limit.
    `code`: of Stripe's error. `status`: of the HTTP response; None if there was none.
    """

    def __init__(
        self,
        detail: str,
        kind: FailureKind,
        *,
        retry_after_seconds: float = 0.0,
        is_general: bool = False,
        code: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind, self.is_general, self.code = kind, is_general, code
        self.retry_after_seconds, self.status = retry_after_seconds, status
