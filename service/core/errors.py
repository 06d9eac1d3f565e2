"""The error hierarchy: class, HTTP status, code, remedy.

    KotaeError                   500 internal              search the log for the request id
    ├── SettingsInvalid          –   settings_invalid      correct the named setting
    ├── NotFound                 404 not_found             check the id and the owner
    ├── Unauthorized             401 unauthorized          send a key (Bearer, X-API-Key, Basic)
    ├── Forbidden                403 forbidden             use a credential with the role or scope
    ├── QuotaExceeded            429 quota_exceeded        retry after `Retry-After`; see `limit`
    ├── BeyondQuota              400 beyond_quota          request less; `limit` is always exceeded
    ├── UnpricedModel            400 unpriced_model        use a priced model or set KOTAE_PRICES
    ├── OutOfCredit              402 out_of_credit         top up, or request less
    ├── KeysFull                 409 keys_full             revoke unused keys
    ├── KeyReplaced              409 key_replaced          rotate the key that replaced this one
    ├── BudgetExists         409 budget_exists         change that budget, or use another name
    ├── BudgetsFull          409 budgets_full          delete budgets
    ├── CustomersFull        409 customers_full        disconnect customers
    ├── PayerExists          409 payer_exists          see `kotae billing assign`
    ├── AmountInvalid        400 amount_invalid        choose an amount within the bounds
    ├── SignatureInvalid     400 signature_invalid     set KOTAE_STRIPE_WEBHOOK_SECRET
    ├── StripeUnavailable    503 stripe_unavailable    retry after `Retry-After`; nothing was paid
    ├── StripeRefused        502 stripe_refused        the log says what: key, permissions, settings
    ├── ConversationBusy         409 conversation_busy     retry when the running answer has ended
    ├── Erased                   410 erased                begin a new conversation
    ├── ForeignHost              400 foreign_host          add the name to KOTAE_ALLOWED_HOSTS
    ├── ForeignOrigin            403 foreign_origin        add the origin to KOTAE_ALLOWED_ORIGINS
    ├── TicketInvalid            403 ticket_invalid        create a new answer
    ├── InvalidRequest           422 invalid_request       correct the shape of the payload
    ├── MalformedRequest         400 malformed_request     send HTTP/1.1 (RFC 9112), one Host header
    ├── RequestTimeout           408 request_timeout       send head and body without long pauses
    ├── UrlTooLong               414 url_too_long          send long prompts to POST /ai/answers
    ├── HeadTooLarge             431 head_too_large        send fewer or smaller headers
    ├── InvalidCursor            400 invalid_cursor        pass `next_cursor` or an id unchanged
    ├── InvalidInterval          400 invalid_interval      ask for less at once, see `detail`
    ├── UnknownModel             400 unknown_model         use a configured model
    ├── NotText                  415 not_text              upload text or a supported file format
    ├── FileUnreadable           415 file_unreadable       do what `detail` says: decrypt, OCR, …
    ├── TooLarge                 413 too_large             send less, or raise the named limit
    ├── DocumentsFull            409 documents_full        delete documents, or raise the limit
    ├── AnswerDamaged            410 answer_damaged        restore a backup, or ask again
    ├── IdempotencyConflict      409 idempotency_conflict  use a new key for a different request
    ├── Overloaded               503 overloaded            retry after `Retry-After`
    ├── JournalFull              503 journal_full          free disk space; nothing was started
    ├── ShuttingDown             503 shutting_down         retry after `Retry-After`
    ├── DatabaseUnavailable      503 database_unavailable  retry; see /health/ready
    ├── QuotaUnavailable         503 quota_unavailable     retry; users without limits go on
    ├── OwnerUnavailable         503 owner_unavailable     retry: its replica is restarting or lost
    │   └── OwnedElsewhere       503 owned_elsewhere       retry: another replica answers it
    ├── LoopDetected             508 loop_detected         give each replica its own peer address
    ├── JwksUnavailable          503 jwks_unavailable      check KOTAE_JWT_JWKS_URL, then retry
    └── ProviderError            502 provider_error        the provider failed while answering
        ├── ProviderUnreachable  502 provider_unreachable  not connected, so nothing was billed
        ├── ProviderBusy         503 provider_busy         out of capacity or quota: retry
        ├── ProviderRefused      502 provider_refused      key, URL or model: run `kotae doctor`
        ├── ProviderRejected     400 provider_rejected     change the prompt or the options
        ├── ProviderTimeout      504 provider_timeout      no data for too long; may be billed
        ├── ProviderCut          502 provider_cut          the answer ended early
        └── ProviderInvalid      502 provider_invalid      not the protocol, or too large

`code` is stable: clients may depend on it. 422 means that the payload has the wrong shape.
`may_retry` means that the provider did not start to answer, so a retry cannot be billed twice.
"""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from service.core.redaction import redact_secrets

_DOUBLINGS_MAX = 30  # of a retry delay, beyond any maximum; avoids an overflow of the float


class KotaeError(Exception):
    """Base class. `str(error)` is the detail shown to the caller and never contains secrets."""

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
        super().__init__(redact_secrets(detail))
        self.extra = extra or {}
        self.retry_after_requested = retry_after_seconds

    @property
    def detail(self) -> str:
        """The message for the caller."""
        return str(self) or self.title

    @property
    def retry_after_seconds(self) -> int | None:
        """The value of `Retry-After`: of this instance, or the default of the class, or None."""
        return (
            self.retry_after_default
            if self.retry_after_requested is None
            else self.retry_after_requested
        )


class SettingsInvalid(KotaeError):
    """A setting has an invalid value. The service does not start."""

    code, title = "settings_invalid", "Settings are invalid"


class NotFound(KotaeError):
    """Nothing has this id, or it belongs to another user: the response is the same."""

    code, status, title = "not_found", 404, "Not found"


class Unauthorized(KotaeError):
    """The credential is missing or invalid."""

    code, status, title = "unauthorized", 401, "Invalid or missing credentials"


class Forbidden(KotaeError):
    """The credential lacks the role or scope that the route requires."""

    code, status, title = "forbidden", 403, "Not allowed"


class QuotaExceeded(KotaeError):
    """A limit of the user or the key is exhausted for now. `windows`: the usage of each limit."""

    code, status, title, retry_after_default = "quota_exceeded", 429, "Quota exceeded", 60
    windows: Sequence[Any] = ()


class BeyondQuota(KotaeError):
    """The upper bound of the request exceeds a limit, so a retry cannot succeed."""

    code, status, title = "beyond_quota", 400, "The request exceeds its quota"


class UnpricedModel(KotaeError):
    """Cost is limited, or answers are prepaid, and the price of the model is unknown."""

    code, status, title = "unpriced_model", 400, "The model has no known price"


class OutOfCredit(KotaeError):
    """The wallet has less than the request may cost. Nothing was started or charged.

    A retry succeeds after a top-up, after answers in progress have cost less than their upper
    bounds, or with a smaller upper bound (`max_tokens`).
    """

    code, status, title = "out_of_credit", 402, "Out of credit"


class KeysFull(KotaeError):
    """The user has the maximum number of keys."""

    code, status, title = "keys_full", 409, "Key limit reached"


class KeyReplaced(KotaeError):
    """The key was already rotated. The key that replaced it was shown once, at that time."""

    code, status, title = "key_replaced", 409, "The key was already rotated"


class BudgetExists(KotaeError):
    """There is a budget with this name: change it, or choose another name."""

    code, status, title = "budget_exists", 409, "The name is in use"


class BudgetsFull(KotaeError):
    """There is the maximum number of budgets: delete some."""

    code, status, title = "budgets_full", 409, "Budget limit reached"


class CustomersFull(KotaeError):
    """There is the maximum number of customers: disconnect some."""

    code, status, title = "customers_full", 409, "Customer limit reached"


class PayerExists(KotaeError):
    """A user pays as one customer, and a customer is of one user."""

    code, status, title = "payer_exists", 409, "The user or the customer is assigned already"


class AmountInvalid(KotaeError):
    """An amount of money that is too small, too large, or not in whole cents."""

    code, status, title = "amount_invalid", 400, "The amount is not allowed"


class SignatureInvalid(KotaeError):
    """A webhook is not signed with the secret, or its signature is too old."""

    code, status, title = "signature_invalid", 400, "The signature is invalid"


class StripeUnavailable(KotaeError):
    """Stripe does not respond, or is busy; nothing was charged."""

    code, status, title, retry_after_default = (
        "stripe_unavailable",
        503,
        "Stripe is not available",
        5,
    )


class StripeRefused(KotaeError):
    """Stripe refuses the request of this service: its key, permissions or settings are wrong."""

    code, status, title = "stripe_refused", 502, "Stripe refused our configuration"


class ConversationBusy(KotaeError):
    """An answer of the conversation is in progress: the next question needs its text."""

    code, status, title, retry_after_default = (
        "conversation_busy",
        409,
        "The conversation is busy",
        1,
    )


class Erased(KotaeError):
    """The texts of an answer or a conversation were erased. This is final."""

    code, status, title = "erased", 410, "Erased"


class ForeignHost(KotaeError):
    """The `Host` header is not allowed: DNS rebinding, or a proxy that is not configured."""

    code, status, title = "foreign_host", 400, "This host name is not served here"


class ForeignOrigin(KotaeError):
    """A page of another site sent this request."""

    code, status, title = "foreign_origin", 403, "Requests from this origin are not allowed"


class TicketInvalid(KotaeError):
    """A stream ticket that is malformed, used, expired or for another answer."""

    code, status, title = "ticket_invalid", 403, "The ticket is not valid"


class InvalidRequest(KotaeError):
    """The payload does not have the documented shape."""

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
    """A cursor that this service did not create."""

    code, status, title = "invalid_cursor", 400, "The cursor is not valid"


class InvalidInterval(KotaeError):
    """An interval, or its division, that cannot be evaluated: too large, or an unknown zone."""

    code, status, title = "invalid_interval", 400, "The interval cannot be evaluated"


class UnknownModel(KotaeError):
    """The request names a model that is not configured."""

    code, status, title = "unknown_model", 400, "Unknown model"


class NotText(KotaeError):
    """The bytes are neither text in a supported encoding nor a supported file format."""

    code, status, title = "not_text", 415, "Not a text"


class FileUnreadable(KotaeError):
    """A file of a supported format that is encrypted, damaged, or without text."""

    code, status, title = "file_unreadable", 415, "The file cannot be read"


class TooLarge(KotaeError):
    """A body, a file or the number of files exceeds its limit."""

    code, status, title = "too_large", 413, "Too large"


class DocumentsFull(KotaeError):
    """The maximum number of documents is stored."""

    code, status, title = "documents_full", 409, "Document limit reached"


class AnswerDamaged(KotaeError):
    """The log row of the answer cannot be read completely. `/ai/logs/{id}` returns the rest."""

    code, status, title = "answer_damaged", 410, "The answer is damaged"


class IdempotencyConflict(KotaeError):
    """The key was used for a different request; nothing was started."""

    code, status, title = "idempotency_conflict", 409, "The key belongs to another request"


class Overloaded(KotaeError):
    """A limit on concurrent work is reached; nothing was started."""

    code, status, title, retry_after_default = "overloaded", 503, "Too busy", 1


class JournalFull(KotaeError):
    """The journal cannot accept another answer: the disk is full, or the database unavailable."""

    code, status, title, retry_after_default = "journal_full", 503, "The journal is full", 5


class ShuttingDown(KotaeError):
    """The process is shutting down; nothing was started, or the answer was interrupted."""

    code, status, title, retry_after_default = "shutting_down", 503, "Shutting down", 2


class DatabaseUnavailable(KotaeError):
    """The database is locked, full, damaged or unreachable."""

    code, status, title, retry_after_default = (
        "database_unavailable",
        503,
        "The database is not available",
        2,
    )


class QuotaUnavailable(KotaeError):
    """The shared store of quotas is not reachable; nothing was started."""

    code, status, title, retry_after_default = (
        "quota_unavailable",
        503,
        "Quotas cannot be checked",
        2,
    )


class OwnerUnavailable(KotaeError):
    """The replica of this answer does not respond, and its row is not written yet."""

    code, status, title, retry_after_default = (
        "owner_unavailable",
        503,
        "The replica of this answer does not respond",
        2,
    )


class OwnedElsewhere(OwnerUnavailable):
    """Another replica has the answer that this request repeats, and should get the request."""

    code, title = "owned_elsewhere", "Another replica answers this request"

    answer_id = ""


def build_owned_elsewhere(answer_id: str) -> OwnedElsewhere:
    """Build the error that names the answer of another replica."""
    error = OwnedElsewhere()
    error.answer_id = answer_id
    return error


class LoopDetected(KotaeError):
    """A request of a replica to another one arrived at the wrong one."""

    code, status, title = "loop_detected", 508, "Loop detected"


class JwksUnavailable(KotaeError):
    """The issuer's keys could not be fetched, and cached ones are missing or too old."""

    code, status, title, retry_after_default = (
        "jwks_unavailable",
        503,
        "Tokens cannot be checked",
        10,
    )


class ReportedError(NamedTuple):
    """An error as the provider reported it, bounded and redacted. `status` None: in a stream."""

    status: int | None
    message: str | None
    type: str | None
    param: str | None
    code: str | None


class ProviderError(KotaeError):
    """The provider failed while answering. `reported`: its own error, if it sent one."""

    code, status, title = "provider_error", 502, "The provider failed"
    may_retry: ClassVar[bool] = False
    reported: ReportedError | None = None
    follows_billed = False  # an earlier attempt of the answer may have been billed

    @property
    def certainly_unbilled(self) -> bool:
        """Whether nothing was billed: not started, or a 500 with the provider's own error body.

        Gateways before the provider send other 5xx, also after it has answered.
        """
        reported = self.reported
        if self.follows_billed:
            return False
        return self.may_retry or (
            reported is not None and reported.status == 500 and reported.message is not None
        )


class ProviderUnreachable(ProviderError):
    """The connection failed; the request was not sent."""

    code, title, may_retry = "provider_unreachable", "The provider cannot be reached", True


class ProviderBusy(ProviderError):
    """429 or 503 before an answer."""

    code, status, title, may_retry, retry_after_default = (
        "provider_busy",
        503,
        "The provider is busy",
        True,
        5,
    )


class ProviderRefused(ProviderError):
    """3xx, 401, 403 or 404: the configuration of this service is wrong, not the request."""

    code, title = "provider_refused", "The provider refused our configuration"


class ProviderRejected(ProviderError):
    """400, 409, 413 or 422: the prompt or the options are not accepted."""

    code, status, title = "provider_rejected", 400, "The provider rejected the request"


class ProviderTimeout(ProviderError):
    """The read timeout or the deadline of the answer passed after the request was sent."""

    code, status, title = "provider_timeout", 504, "The provider took too long"


class ProviderCut(ProviderError):
    """The stream ended without a finish reason."""

    code, title = "provider_cut", "The provider ended the answer early"


class ProviderInvalid(ProviderError):
    """The response violates the protocol or a limit."""

    code, title = "provider_invalid", "The provider sent an invalid response"


def get_error_class(code: str) -> type[KotaeError]:
    """The class of a code, such as that of a log row; `KotaeError` for an unknown code."""
    tree = [KotaeError]
    for error_class in tree:
        tree += error_class.__subclasses__()
    return next((error_class for error_class in tree if error_class.code == code), KotaeError)


def retry_delay(failures: int, *, first_seconds: float, seconds_max: float) -> float:
    """Exponential backoff with ±50 % jitter: seconds to wait after `failures` (≥ 1) in a row."""
    delay = first_seconds * 2.0 ** min(failures - 1, _DOUBLINGS_MAX)
    return min(delay * random.uniform(0.5, 1.5), seconds_max)  # noqa: S311 - not for secrets
