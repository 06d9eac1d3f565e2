"""Shapes of responses that routes build as dictionaries; used by the OpenAPI document only."""

from datetime import date as Date  # noqa: N812 - `date` is also a field
from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from service.api.schemas import Problem
from service.core.auth.store import ApiKey
from service.core.billing.accounts import EntryObject
from service.core.billing.checkout import Invoice
from service.core.billing.inbox import InboxEvent
from service.core.billing.meter_events import EventObject
from service.core.budgets.spend import BudgetObject
from service.core.documents.library import Document
from service.core.quota.history import UsageTotal


class UploadResult(Struct):
    """The uploaded documents; if there is one, also its fields."""

    items: list[Document]
    document_id: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    chunks: int | UnsetType = UNSET
    characters: int | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    format: str | UnsetType = UNSET
    pages: int | UnsetType | None = UNSET
    date: Date | UnsetType | None = UNSET
    source: str | UnsetType | None = UNSET
    file_hash: str | UnsetType | None = UNSET
    original_bytes: int | UnsetType | None = UNSET
    tags: list[str] | UnsetType = UNSET
    shared: bool | UnsetType = UNSET
    created_at: datetime | UnsetType = UNSET
    created: bool | UnsetType = UNSET


class UploadedFile(Struct):
    """The result of a file: `status` and `document`, or the `problem` with its `status`.

    `index`: position of the file in the upload. `name`: with its path if it is in an archive.
    """

    index: int
    name: str
    status: int
    document: Document | UnsetType = UNSET
    problem: Problem | UnsetType = UNSET


class PartialUploadResult(Struct):
    """The results of all files, in order."""

    items: list[UploadedFile]


LOG_ROW_SCHEMA = {
    "anyOf": [
        {"$ref": "#/components/schemas/Answer"},
        {"$ref": "#/components/schemas/DamagedAnswer"},
    ]
}


LOG_LIST_ROW_SCHEMA = {
    "anyOf": [
        {"$ref": "#/components/schemas/ListedAnswer"},
        {"$ref": "#/components/schemas/DamagedAnswer"},
    ]
}


class LogRowPage(Struct):
    """A page. `next_cursor` is null only on the last page; when tailing it is always set.

    With several filters a page may have fewer rows than requested, even none, before the last page.
    """

    items: list[Annotated[Any, Meta(extra_json_schema=LOG_LIST_ROW_SCHEMA)]]
    next_cursor: str | None


class ConversationThread(Struct):
    """A conversation with its answers, oldest first. `next_cursor` is null on the last page."""

    id: str
    user_id: str
    items: list[Annotated[Any, Meta(extra_json_schema=LOG_ROW_SCHEMA)]]
    next_cursor: str | None


class KeyList(Struct):
    """API keys, newest first, without the keys themselves."""

    items: list[ApiKey]


class SessionInfo(Struct):
    """The current user. `expires_at` is null if the credential does not expire."""

    user_id: str
    role: str
    expires_at: datetime | None


class Limits(Struct):
    """Limits; an absent one is unlimited. Costs are decimal strings in USD."""

    requests_per_minute: int | UnsetType = UNSET
    tokens_per_minute: int | UnsetType = UNSET
    tokens_per_day: int | UnsetType = UNSET
    tokens_per_month: int | UnsetType = UNSET
    cost_usd_per_day: str | UnsetType = UNSET
    cost_usd_per_month: str | UnsetType = UNSET
    concurrent: int | UnsetType = UNSET


class UserSettings(Struct):
    """A user: the plan, or individual limits."""

    user_id: str
    disabled: bool
    plan: str | None
    limits: Limits | None


class ErasedTexts(Struct):
    """`erased`: the rows whose texts were not erased before."""

    user_id: str
    erased: int


class KeySet(Struct):
    """Public keys as JWKs (RFC 7517)."""

    keys: list[dict[str, str]]


class UserQuota(UserSettings):
    """A user and the limits in force; null: unlimited."""

    in_force: Limits | None


class UserPage(Struct):
    """Users by id. `next_cursor` is null on the last page."""

    items: list[UserSettings]
    next_cursor: str | None


class PlanSettings(Struct):
    """A plan."""

    name: str
    limits: Limits
    prepaid: bool
    markup: str | None


class PlanList(Struct):
    """All plans."""

    items: list[PlanSettings]


class BudgetList(Struct):
    """All budgets, by name."""

    items: list[BudgetObject]


class BudgetEventData(Struct):
    """What the receiver of an alert is told about the budget. Costs are decimal strings in USD."""

    alert_id: str
    budget_id: str
    budget: str
    subject: str
    period: str
    window_start: datetime
    window_end: datetime
    threshold: int
    percent: int
    amount_usd: str
    spent_usd: str
    unpriced: int
    action: str


class BudgetEvent(Struct, tag_field="type", tag="budget.threshold_reached"):
    """The body of a webhook about a budget."""

    timestamp: datetime
    data: BudgetEventData


class CreditEventData(Struct):
    """What the receiver of an alert is told about a wallet. Amounts are decimal strings in USD."""

    alert_id: str
    user_id: str
    balance_usd: str
    amount_usd: str
    credited_at: datetime


class CreditEvent(Struct, tag_field="type", tag="wallet.credit_low"):
    """The body of a webhook about low credit."""

    timestamp: datetime
    data: CreditEventData


class AlertObject(Struct):
    """An alert and its delivery. `state`: unsent, pending, delivered or failed.

    For low credit, `budget_id` is the ledger entry of the latest credit, and `threshold` is 0.
    """

    id: str
    budget_id: str
    window_start: datetime
    threshold: int
    created_at: datetime
    state: str
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    error: str | None
    event: BudgetEvent | CreditEvent


class AlertList(Struct):
    """Alerts, newest first."""

    items: list[AlertObject]


class CustomerObject(Struct):
    """A connection of a user to a customer at Stripe."""

    id: str
    user_id: str
    stripe_customer_id: str
    started_at: datetime
    ended_at: datetime | None


class CustomerList(Struct):
    """The connections in force, by user."""

    items: list[CustomerObject]


class MeterEventList(Struct):
    """Meter events, the latest hours first."""

    items: list[EventObject]


class InboxList(Struct):
    """Events of Stripe, the latest first."""

    items: list[InboxEvent]


class WebhookReceived(Struct):
    """An event of Stripe was stored, or needs no processing."""

    received: bool


class WalletAccount(Struct):
    """A wallet. Amounts are decimal strings in USD; `invoices` are null without any.

    `held`: the upper bounds of answers in progress; `available` for further ones.
    `checkout` and `portal`: whether the user can top up, and has a page at Stripe. `top_up_min`
    and `top_up_max`: the bounds of a top-up.
    """

    user_id: str
    balance: str
    held: str
    available: str
    currency: str
    prepaid: bool
    markup: str | None
    entries: list[EntryObject]
    next_cursor: str | None
    invoices: list[Invoice] | None
    checkout: bool
    portal: bool
    top_up_min: str | UnsetType = UNSET
    top_up_max: str | UnsetType = UNSET
    invoices_error: str | UnsetType = UNSET


class PortalSession(Struct):
    """A page of Stripe, for a short time."""

    url: str


class LimitUsage(Struct):
    """The state of one limit. Tokens and answers are integers, costs are decimal strings in USD."""

    name: str
    of: str
    limit: int | str
    used: int | str
    held: int | str
    left: int | str
    reset_seconds: int | None


class UsedAmount(Struct):
    """An amount that is used, and one that is held for answers in progress."""

    used: int | str
    held: int | str


class Percentiles(Struct):
    """Percentiles in milliseconds, with an error of at most 2 %; null without answers."""

    p50: float | None
    p95: float | None
    p99: float | None


class AnalyticsResult(Struct):
    """The metrics and the dimensions that were requested.

    `cost` is the known cost in USD. `unpriced_answers` have usage without a price,
    `unknown_answers` may have been billed, but their usage is unknown.
    """

    user_id: str | UnsetType = UNSET
    key_id: str | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    provider: str | UnsetType | None = UNSET
    endpoint: str | UnsetType = UNSET
    status: str | UnsetType = UNSET
    usage_source: str | UnsetType = UNSET
    answers: int | UnsetType = UNSET
    errors: int | UnsetType = UNSET
    attempts: int | UnsetType = UNSET
    prompt_tokens: int | UnsetType = UNSET
    completion_tokens: int | UnsetType = UNSET
    cached_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET
    total_tokens: int | UnsetType = UNSET
    cost: str | UnsetType = UNSET
    unpriced_answers: int | UnsetType = UNSET
    unknown_answers: int | UnsetType = UNSET
    response_time_ms: Percentiles | UnsetType = UNSET
    first_token_ms: Percentiles | UnsetType = UNSET


class AnalyticsBucket(Struct):
    """The results of an interval; `end_time` is exclusive."""

    start_time: datetime
    end_time: datetime
    results: list[AnalyticsResult]


class AnalyticsPage(Struct):
    """Results by bucket. A bucket may continue on the next page; empty ones are left out."""

    timezone: str
    items: list[AnalyticsBucket]
    next_cursor: int | None


class IntervalSums(Struct):
    """Sums over an interval. `cost`, `unpriced_answers`, `unknown_answers`: as for analytics."""

    answers: int
    errors: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: str
    unpriced_answers: int
    unknown_answers: int


class Reconciliation(Struct):
    """The sums over the rows and the stored ones. The interval is that of whole quarter hours."""

    since: datetime
    until: datetime
    agrees: bool
    rows: IntervalSums
    sums: IntervalSums


class UsageReport(Struct):
    """The limits of a user, all usage of the current windows, and totals of a period."""

    user_id: str
    limits: list[LimitUsage]
    used: dict[str, UsedAmount]
    since: Date
    until: Date
    totals: list[UsageTotal]


class Liveness(Struct):
    """The process responds."""

    status: str


class Readiness(Struct):
    """The state of the service. `degraded`: background workers that are.

    With an admin's credential, `database` is the error message, and further members are the
    version and the statistics of the queue, of answers and of each worker.
    """

    status: str
    model: str
    database: str
    degraded: list[str]


class DeltaEvent(Struct):
    """The payload of an unnamed event: a part of the text."""

    delta: str
