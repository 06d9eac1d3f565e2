"""Every error that Kotae raises on purpose.

    KotaeError                     500 internal               a fault of ours; the request id finds it in the log
    ├── SettingsInvalid            –   settings_invalid       the start ends with it: correct the named variable
    ├── NotFound                   404 not_found              no such thing, or not yours
    ├── Unauthorized               401 unauthorized           send a key as bearer token, X-API-Key or Basic password
    ├── Forbidden                  403 forbidden              ask with a credential of the needed role or scope
    ├── QuotaExceeded              429 quota_exceeded         come back after `Retry-After`; `limit` says which one is used up
    ├── BeyondQuota                400 beyond_quota           ask for less: this never fits the limit that `limit` names
    ├── UnpricedModel              400 unpriced_model         name a model with a price, or give its price in KOTAE_PRICES
    ├── KeysFull                   409 keys_full              revoke keys
    ├── KeyReplaced                409 key_replaced           the key was rotated: rotate the one that replaces it
    ├── ForeignHost                400 foreign_host           add the name to KOTAE_ALLOWED_HOSTS
    ├── ForeignOrigin              403 foreign_origin         add the page's origin to KOTAE_ALLOWED_ORIGINS
    ├── TicketInvalid              403 ticket_invalid         used, expired or for another answer: ask again
    ├── InvalidRequest             422 invalid_request        the payload has not the shape of the route
    ├── MalformedRequest           400 malformed_request      send HTTP/1.1 as RFC 9112 defines it, with one Host header
    ├── RequestTimeout             408 request_timeout        send the head, then the body, without long pauses
    ├── UrlTooLong                 414 url_too_long           send a long prompt in the body of POST /ai/answers
    ├── HeadTooLarge               431 head_too_large         send fewer or smaller headers
    ├── InvalidCursor              400 invalid_cursor         pass `next_cursor`, or an answer's id, unchanged
    ├── UnknownModel               400 unknown_model          name a model that is configured
    ├── NotText                    415 not_text               give plain text or Markdown
    ├── TooLarge                   413 too_large              send less, or raise the named limit
    ├── DocumentsFull              409 documents_full         delete documents, or raise the limit
    ├── IdempotencyConflict        409 idempotency_conflict   another request has this key: send another key
    ├── Overloaded                 503 overloaded             come back after `Retry-After`
    ├── JournalFull                503 journal_full           make room on the disk; nothing was begun
    ├── ShuttingDown               503 shutting_down          come back after `Retry-After`: the next process answers
    ├── DatabaseUnavailable        503 database_unavailable   come back; see /health/ready
    ├── JwksUnavailable            503 jwks_unavailable       come back; see that KOTAE_JWT_JWKS_URL can be read
    └── ProviderError              502 provider_error         the provider failed while answering
        ├── ProviderUnreachable    502 provider_unreachable   it did not take the request; nothing was billed
        ├── ProviderBusy           503 provider_busy          it is out of capacity or of quota; come back
        ├── ProviderRefused        502 provider_refused       our key, URL or model is wrong: see `kotae doctor`
        ├── ProviderRejected       400 provider_rejected      it did not accept this prompt or these options
        ├── ProviderTimeout        504 provider_timeout       it was silent for too long; it may have billed
        ├── ProviderCut            502 provider_cut           it ended the answer in the middle
        └── ProviderInvalid        502 provider_invalid       it sent what is not the protocol, or too much of it

`code` is stable: clients and tests hold on to it. 422 is for the shape of a payload only. `may_retry` says that the
provider surely did not begin to answer, so that trying again cannot be billed twice.
"""

import random
from collections.abc import Sequence
from typing import Any, ClassVar

_DOUBLINGS_MAX = 30  # of a retry delay: far beyond any maximum, and a float still holds the product


class KotaeError(Exception):
    """Base of the tree. `str(error)` is the detail shown to the caller: it never holds a secret."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_default: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_seconds: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.extra = extra or {}
        self.retry_after_asked = retry_after_seconds

    @property
    def detail(self) -> str:
        """The sentence for the caller."""
        return str(self) or self.title

    @property
    def retry_after_seconds(self) -> int | None:
        """When coming back makes sense: as asked for by whoever refused, else the default of this error, else never."""
        return (
            self.retry_after_default if self.retry_after_asked is None else self.retry_after_asked
        )


class SettingsInvalid(KotaeError):
    """A setting has a bad value; the start ends."""

    code, title = "settings_invalid", "Settings are invalid"


class NotFound(KotaeError):
    """Nothing has this id, or it belongs to somebody else: the caller cannot tell which."""

    code, status, title = "not_found", 404, "Not found"


class Unauthorized(KotaeError):
    """No credential, or a wrong one."""

    code, status, title = "unauthorized", 401, "Credentials are missing or wrong"


class Forbidden(KotaeError):
    """Known, but not for this: the route needs another role or scope."""

    code, status, title = "forbidden", 403, "Not allowed"


class QuotaExceeded(KotaeError):
    """A limit of the user or the key is used up for now. `windows` is where the limits stand."""

    code, status, title, retry_after_default = "quota_exceeded", 429, "The quota is used up", 60
    windows: Sequence[Any] = ()


class BeyondQuota(KotaeError):
    """The request's upper bound is larger than a limit: it never fits, so there is no use in coming back."""

    code, status, title = "beyond_quota", 400, "The request is larger than its quota"


class UnpricedModel(KotaeError):
    """Cost is limited, and nobody knows what this model costs."""

    code, status, title = "unpriced_model", 400, "The model has no known price"


class KeysFull(KotaeError):
    """The user has as many keys as the settings allow."""

    code, status, title = "keys_full", 409, "No room for more keys"


class KeyReplaced(KotaeError):
    """The key was rotated before: another key replaces it, and was shown once to whoever rotated it."""

    code, status, title = "key_replaced", 409, "The key was rotated already"


class ForeignHost(KotaeError):
    """The `Host` header names somebody else: a rebound DNS name, or a proxy not yet allowed."""

    code, status, title = "foreign_host", 400, "This host name is not served here"


class ForeignOrigin(KotaeError):
    """A page of another site sent this request."""

    code, status, title = "foreign_origin", 403, "Requests from this origin are refused"


class TicketInvalid(KotaeError):
    """A stream ticket that was used already, has expired, is for another answer, or is none."""

    code, status, title = "ticket_invalid", 403, "The ticket is not valid"


class InvalidRequest(KotaeError):
    """The payload has not the shape that the route documents."""

    code, status, title = "invalid_request", 422, "The request is not valid"


class MalformedRequest(KotaeError):
    """The request is not HTTP/1.1, or ambiguous; the connection is closed."""

    code, status, title = "malformed_request", 400, "The request is malformed"


class RequestTimeout(KotaeError):
    """The client was too slow to send its request; the connection is closed."""

    code, status, title = "request_timeout", 408, "The request took too long"


class UrlTooLong(KotaeError):
    """The URL exceeds its limit; the connection is closed."""

    code, status, title = "url_too_long", 414, "The URL is too long"


class HeadTooLarge(KotaeError):
    """Headers, trailers or chunk extensions exceed their limits; the connection is closed."""

    code, status, title = "head_too_large", 431, "The request head is too large"


class InvalidCursor(KotaeError):
    """A cursor that this service did not make."""

    code, status, title = "invalid_cursor", 400, "The cursor is not valid"


class UnknownModel(KotaeError):
    """The request names a model that is not configured."""

    code, status, title = "unknown_model", 400, "The model is not known"


class NotText(KotaeError):
    """The bytes given are not a text in any encoding we read."""

    code, status, title = "not_text", 415, "This is not a text"


class TooLarge(KotaeError):
    """A body, a file or a number of files is over its limit."""

    code, status, title = "too_large", 413, "Too large"


class DocumentsFull(KotaeError):
    """As many documents are kept as the settings allow."""

    code, status, title = "documents_full", 409, "No room for more documents"


class IdempotencyConflict(KotaeError):
    """The key came with another request before; nothing was begun."""

    code, status, title = "idempotency_conflict", 409, "The key belongs to another request"


class Overloaded(KotaeError):
    """A limit on work in progress is reached; nothing was begun."""

    code, status, title, retry_after_default = "overloaded", 503, "Too busy", 1


class JournalFull(KotaeError):
    """The journal has no room for another answer: the disk is full, or the database has been away for long."""

    code, status, title, retry_after_default = "journal_full", 503, "The journal is full", 5


class ShuttingDown(KotaeError):
    """The process is ending; nothing was begun, or the answer was interrupted."""

    code, status, title, retry_after_default = "shutting_down", 503, "Shutting down", 2


class DatabaseUnavailable(KotaeError):
    """The database is locked, full or away."""

    code, status, title, retry_after_default = (
        "database_unavailable",
        503,
        "The database is not available",
        2,
    )


class JwksUnavailable(KotaeError):
    """The keys of the tokens' issuer were never read, or too long ago."""

    code, status, title, retry_after_default = (
        "jwks_unavailable",
        503,
        "Tokens cannot be checked",
        10,
    )


class ProviderError(KotaeError):
    """The provider failed while it answered."""

    code, status, title = "provider_error", 502, "The provider failed"
    may_retry: ClassVar[bool] = False


class ProviderUnreachable(ProviderError):
    """No connection: the request was not taken."""

    code, title, may_retry = "provider_unreachable", "The provider cannot be reached", True


class ProviderBusy(ProviderError):
    """429, or 503 before any answer."""

    code, status, title, may_retry, retry_after_default = (
        "provider_busy",
        503,
        "The provider is busy",
        True,
        5,
    )


class ProviderRefused(ProviderError):
    """401, 403 or 404: the configuration is wrong, not the request."""

    code, title = "provider_refused", "The provider refused our configuration"


class ProviderRejected(ProviderError):
    """400, 409, 413 or 422: this prompt or these options are not accepted."""

    code, status, title = "provider_rejected", 400, "The provider rejected the request"


class ProviderTimeout(ProviderError):
    """Silence, or the answer's deadline, after the request was sent."""

    code, status, title = "provider_timeout", 504, "The provider took too long"


class ProviderCut(ProviderError):
    """The stream ended without a finish reason."""

    code, title = "provider_cut", "The provider ended the answer in the middle"


class ProviderInvalid(ProviderError):
    """What came is not the protocol, or more than the limits allow."""

    code, title = "provider_invalid", "The provider sent an invalid answer"


def by_code(code: str) -> type[KotaeError]:
    """The class of a code, as rows have it; `KotaeError` itself for one that is not in the tree."""
    tree = [KotaeError]
    for each in tree:
        tree += each.__subclasses__()
    return next((each for each in tree if each.code == code), KotaeError)


def retry_delay(failures: int, *, first_seconds: float, seconds_max: float) -> float:
    """Seconds to wait after this many failures in a row, counted from 1: doubled each time, with jitter of ±50 %."""
    delay = first_seconds * 2.0 ** min(failures - 1, _DOUBLINGS_MAX)
    return min(delay * random.uniform(0.5, 1.5), seconds_max)  # noqa: S311 - not for secrets
