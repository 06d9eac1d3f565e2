"""Request bodies, which pydantic validates, and the documentation of responses.

Responses are encoded by msgspec, mostly from the structs of `service.core`; `api/openapi.py`
derives their JSON schemas from the same structs.
"""

import datetime as dt
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

import msgspec
from fastapi import Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from service.core.billing.customers import STRIPE_ID_PATTERN
from service.core.billing.ledger import NOTE_CHARACTERS_MAX
from service.core.budgets.budget import (
    SUBJECT_PATTERN,
    THRESHOLD_MAX,
    THRESHOLDS_MAX,
)
from service.core.encoding import sanitize_text
from service.core.ports import QuotaLimits
from service.core.pricing import to_nano_usd
from service.core.records import Intent, Message, Passage

_NO_NUL = r"^[^\x00]+$"  # PostgreSQL cannot store it
NotBlank = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_NUL)]
Cursor = Annotated[
    str | None, Query(max_length=64, description="`next_cursor` of the previous page")
]
UserId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_NUL)]
PlanName = Annotated[
    str, StringConstraints(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9._-]+$")
]
Markup = Annotated[Decimal, Field(gt=0, le=1000, max_digits=10, decimal_places=6)]
Money = Annotated[Decimal, Field(ge=0, le=10**6, max_digits=15, decimal_places=9)]


def reject_conversion(value: Any) -> Any:
    """Reject strings and booleans, which pydantic converts to numbers. Raises `ValueError`."""
    if isinstance(value, str | bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports only this one
    return value


EPOCH_YEAR = 1970
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def require_date(value: Any) -> Any:
    """Reject numbers, which pydantic converts to times. Raises `ValueError`."""
    if not (isinstance(value, str) and _DATE.match(value)):
        raise ValueError("must be a date or time as in RFC 3339")
    return value


def to_utc(moment: datetime) -> datetime:
    """Convert a time from 1970 to 9999 to UTC; without an offset it is UTC. Raises `ValueError`."""
    try:
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except OverflowError:
        moment = datetime.min.replace(tzinfo=UTC)
    if moment.year < EPOCH_YEAR:
        raise ValueError("must be between the years 1970 and 9999 in UTC")
    return moment


def require_era(day: date) -> date:
    """Reject dates before 1970. Raises `ValueError`."""
    if day.year < EPOCH_YEAR:
        raise ValueError("must be between the years 1970 and 9999")
    return day


_AGO = re.compile(r"-([0-9]{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def resolve_relative(value: Any) -> Any:
    """Replace a duration before now, as `-90m`, `-24h` or `-7d`, by its time."""
    match = _AGO.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return require_date(value)
    return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})


Moment = Annotated[datetime, BeforeValidator(resolve_relative), AfterValidator(to_utc)]


def require_utc(moment: datetime) -> datetime:
    """Reject a time outside of 1970 to 9999 in UTC; it keeps its offset. Raises `ValueError`."""
    to_utc(moment)
    return moment


LocalMoment = Annotated[datetime, BeforeValidator(resolve_relative), AfterValidator(require_utc)]
Day = Annotated[date, BeforeValidator(require_date), AfterValidator(require_era)]
ExpiryTime = Annotated[AwareDatetime, BeforeValidator(require_date), AfterValidator(to_utc)]

NUMBER = BeforeValidator(reject_conversion)
Count = Annotated[int, Field(ge=0, le=10**15), NUMBER]
MaxTokens = Annotated[int, Field(ge=1), NUMBER]
Temperature = Annotated[float, Field(ge=0, le=2), NUMBER]
ExpiryDays = Annotated[float, Field(gt=0, le=3650), NUMBER]
GraceSeconds = Annotated[float, Field(ge=0, le=2_592_000), NUMBER]

# The values of `endpoint` in log rows.
Endpoint = Literal[
    "/ai/test",
    "/ai/stream",
    "/ai/answers",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/mcp",
    "rewriting",
]

READ_ONLY = "Not changed: accepted because `GET` returns it"
SAME_USER = "If present, the id in the URL."

MESSAGES_MAX = 200
ConversationId = Annotated[str, StringConstraints(min_length=1, max_length=36, pattern=_NO_NUL)]
DocumentIds = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NO_NUL)]],
    Field(min_length=1, max_length=100),
]


Tag = Annotated[
    str, StringConstraints(min_length=1, max_length=50, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")
]
Tags = Annotated[list[Tag], Field(max_length=20)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=_NO_NUL)]


class MessageBody(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: NotBlank


class AskBody(BaseModel):
    """A prompt with options. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "返品は何日以内にできますか？"},
                {
                    "messages": [
                        {"role": "user", "content": "How long may I return a product?"},
                        {"role": "assistant", "content": "Within 30 days."},
                        {"role": "user", "content": "What about opened ones?"},
                    ]
                },
                {
                    "prompt": "Write a haiku about streams.",
                    "grounded": False,
                    "max_tokens": 60,
                    "temperature": 0.7,
                },
            ]
        },
    )
    prompt: NotBlank | None = Field(
        None, description="The question, at most KOTAE_PROMPT_CHARACTERS_MAX characters (413)."
    )
    messages: list[MessageBody] | None = Field(
        None,
        min_length=1,
        max_length=MESSAGES_MAX,
        description="Instead of `prompt`: a conversation that ends with the question. All messages "
        "together have at most KOTAE_PROMPT_CHARACTERS_MAX characters (413).",
    )
    conversation_id: ConversationId | None = Field(
        None, description="With `prompt`: the stored conversation that the question continues."
    )
    grounded: StrictBool = Field(
        True, description="Answer from the documents, or refuse without relevant passages."
    )
    model: ModelName | None = Field(None, description="A configured model; default: KOTAE_MODEL.")
    max_tokens: MaxTokens | None = Field(
        None, description="Maximum completion tokens, at most KOTAE_MAX_TOKENS_MAX."
    )
    temperature: Temperature | None = None
    user_id: UserId | None = Field(None, description="The user to answer for; for admins.")
    documents: DocumentIds | None = Field(None, description="Use only these documents.")
    tags: Annotated[Tags, Field(min_length=1)] | None = Field(
        None, description="Use only documents with one of these tags."
    )

    @model_validator(mode="after")
    def check_question(self) -> Self:
        """Require `prompt`, or `messages` with the question last. Raises `ValueError`."""
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is required")
        if self.messages is not None:
            if self.messages[-1].role != "user":
                raise ValueError("the last message must be from the user")
            if self.conversation_id is not None:
                raise ValueError("messages and conversation_id exclude each other")
        return self

    def split_question(self) -> tuple[str, list[Message]]:
        """Return the question, and the messages before it."""
        if self.messages is None:
            return self.prompt or "", []
        *history, last = self.messages
        return last.content, [
            Message(message.role, sanitize_text(message.content)) for message in history
        ]


class TextBody(BaseModel):
    """A document as JSON."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"title": "Opening hours", "text": "We open at nine. 定休日は月曜日です。"}
            ]
        },
    )
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    text: NotBlank
    shared: StrictBool = Field(False, description="Visible to all users; requires an admin.")
    source: Source | None = Field(
        None, description="A path or URL; replaces what was uploaded from it."
    )
    tags: Tags = Field([], description="Stored in lower case.")
    date: dt.date | None = Field(None, description="Of the content.")


class DocumentBody(BaseModel):
    """Changes of a document; absent fields stay."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"title": "Handbook 2026", "tags": ["hr"], "date": None}]},
    )
    title: Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"\S")] | None = (
        None
    )
    tags: Tags | None = None
    date: dt.date | None = Field(None, description="Of the content; null removes it.")
    shared: StrictBool | None = Field(None, description="Visible to all users; requires an admin.")

    @model_validator(mode="after")
    def check_null(self) -> Self:
        """Reject null except for `date`. Raises `ValueError`."""
        if any(getattr(self, name) is None for name in self.model_fields_set - {"date"}):
            raise ValueError("only date can be null")
        return self


class LimitsBody(BaseModel):
    """Limits of a user or a key; absent means unlimited. Costs are decimal strings in USD."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"tokens_per_day": 200_000, "cost_usd_per_month": "5.00"}]},
    )
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    cost_usd_per_day: Money | None = None
    cost_usd_per_month: Money | None = None
    concurrent: Count | None = Field(None, description="Concurrent answers.")

    def to_limits(self) -> QuotaLimits:
        """Convert to the limits of the core, costs in nano-dollars."""
        day, month = self.cost_usd_per_day, self.cost_usd_per_month
        return QuotaLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            tokens_per_day=self.tokens_per_day,
            tokens_per_month=self.tokens_per_month,
            cost_nano_usd_per_day=None if day is None else to_nano_usd(day),
            cost_nano_usd_per_month=None if month is None else to_nano_usd(month),
            concurrent=self.concurrent,
        )


class PlanBody(LimitsBody):
    """The limits of a plan: as members, or in `limits` as returned by `GET /ai/plans`."""

    name: PlanName | None = Field(None, description="If present, the name in the URL.")
    limits: LimitsBody | None = Field(None, description="Replaces the members above.")
    prepaid: bool = Field(False, description="Answers are paid from the wallet of the user.")
    markup: Markup | None = Field(
        None, description="Factor of the cost that users pay; null: 1 if prepaid, else no charge."
    )

    @model_validator(mode="after")
    def check_exclusive(self) -> Self:
        """Reject `limits` together with other limits. Raises `ValueError`."""
        single = (getattr(self, name) for name in LimitsBody.model_fields)
        if self.limits is not None and any(limit is not None for limit in single):
            raise ValueError("limits and single limits exclude each other")
        return self

    def to_limits(self) -> QuotaLimits:
        """Convert to the limits of the core, costs in nano-dollars."""
        return super().to_limits() if self.limits is None else self.limits.to_limits()


class KeyBody(BaseModel):
    """A key to be created."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "laptop", "scopes": ["ask"], "expires_in_days": 90}]
        },
    )
    user_id: UserId | None = Field(
        None, description="Owner; default: you. Other users require an admin."
    )
    role: Literal["user", "admin"] = "user"
    scopes: list[Literal["ask", "documents", "logs", "keys"]] | None = Field(
        None, max_length=4, description="Default: those of the creator."
    )
    name: Annotated[str, StringConstraints(max_length=100)] = Field("", description="A label.")
    expires_at: ExpiryTime | None = None
    expires_in_days: ExpiryDays | None = None
    limits: LimitsBody | None = Field(
        None, description="Limits of this key, besides those of its user."
    )


class RotateBody(BaseModel):
    """Options of a key rotation."""

    model_config = ConfigDict(extra="forbid")
    grace_seconds: GraceSeconds = Field(86_400, description="How long the old key stays valid.")


def require_positive(amount: str) -> str:
    """Reject an amount of zero. Raises `ValueError`."""
    if not Decimal(amount):
        raise ValueError("must be more than 0")
    return amount


BudgetAmount = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$"),
    AfterValidator(require_positive),
    WithJsonSchema({"type": "string", "pattern": r"^(?!0+(\.0+)?$)[0-9]{1,6}(\.[0-9]{1,9})?$"}),
]
Thresholds = Annotated[
    list[Annotated[int, Field(ge=1, le=THRESHOLD_MAX), BeforeValidator(reject_conversion)]],
    Field(
        min_length=1,
        max_length=THRESHOLDS_MAX,
        description="Percentages of the amount that cause alerts.",
    ),
]


class BudgetBody(BaseModel):
    """A budget to be created."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "all", "subject": "all", "amount_usd": "500", "period": "month"}]
        },
    )
    name: PlanName
    subject: str = Field(
        pattern=SUBJECT_PATTERN,
        description="`user:ID`, `key:ID`, `plan:NAME`, `model:NAME` or `all`.",
    )
    amount_usd: BudgetAmount
    period: Literal["day", "month"] = Field(description="The window, in UTC.")
    thresholds: Thresholds | None = Field(None, description="Default: 50, 80 and 100.")
    action: Literal["alert", "refuse"] = "alert"


class BudgetChange(BaseModel):
    """New values of a budget; absent ones do not change."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"amount_usd": "9"}]})
    amount_usd: BudgetAmount | None = None
    thresholds: Thresholds | None = None
    action: Literal["alert", "refuse"] | None = None


class CustomerBody(BaseModel):
    """The customer at Stripe as which a user is billed."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"stripe_customer_id": "cus_NffrFeUfNV2H"}]}
    )
    stripe_customer_id: str = Field(pattern=STRIPE_ID_PATTERN)


class CheckoutBody(BaseModel):
    """The amount of a top-up."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"amount": "25.00"}]})
    amount: str = Field(
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,2})?$",
        description="In USD, without tax: KOTAE_TOP_UP_USD_MIN to KOTAE_TOP_UP_USD_MAX (400).",
    )


class GrantBody(BaseModel):
    """An amount that an admin adds to a wallet."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"user_id": "alice", "amount": "5", "note": "welcome", "kind": "grant"}]
        },
    )
    user_id: UserId
    amount: str = Field(
        pattern=r"^-?[0-9]{1,6}(\.[0-9]{1,9})?$",
        description="In USD; not 0, and only negative for an adjustment (400).",
    )
    note: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=NOTE_CHARACTERS_MAX, pattern=_NO_NUL)
        ]
        | None
    ) = Field(None, description="Shown to the user.")
    kind: Literal["grant", "adjustment"] = "grant"


class DecisionBody(BaseModel):
    """What happens to a meter event in review."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"decision": "send"}]}
    )
    decision: Literal["billed", "send"] = Field(
        description="billed: Stripe has it, or it is not to be billed. send: it is sent under a "
        "new identifier."
    )


class QuotaBody(BaseModel):
    """A plan by name, or individual limits; neither means the default plan."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"plan": "team"}, {"limits": {"tokens_per_day": 50_000}}]},
    )
    plan: PlanName | None = None
    limits: LimitsBody | None = None
    user_id: UserId | None = Field(None, description=SAME_USER)
    disabled: bool | None = Field(None, description=f"{READ_ONLY}; set by `PUT /ai/users/{{id}}`.")
    in_force: LimitsBody | None = Field(None, description=f"{READ_ONLY}.")


class UserBody(BaseModel):
    """Whether a user is disabled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"disabled": True}]})
    disabled: StrictBool
    user_id: UserId | None = Field(None, description=SAME_USER)
    plan: PlanName | None = Field(
        None, description=f"{READ_ONLY}; set by `PUT /ai/users/{{id}}/quota`."
    )
    limits: LimitsBody | None = Field(
        None, description=f"{READ_ONLY}; set by `PUT /ai/users/{{id}}/quota`."
    )


class Problem(msgspec.Struct):
    """Every error (RFC 9457). `code` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class StartEvent(msgspec.Struct):
    """The `start` event. `resumable` is present only if false: the stream buffers are full."""

    id: str
    model: str
    grounded: bool
    conversation_id: str | None
    context: list[Passage]
    resumable: bool = True


class AnswerStarted(msgspec.Struct):
    """A started answer. `resumable` false: it ends with its reader, the stream buffers are full."""

    id: str
    events_url: str
    expires_at: datetime
    resumable: bool
    conversation_id: str | None


class AnswerInProgress(msgspec.Struct):
    """An answer in progress; `response` is its text so far."""

    id: str
    prompt: str
    response: str
    endpoint: str
    model: str
    user_id: str
    created_at: datetime
    grounded: bool
    request_id: str
    conversation_id: str | None
    status: str = "in_progress"

    @classmethod
    def from_intent(cls, intent: Intent, text: str) -> "AnswerInProgress":
        """Create it from the intent and the text so far."""
        return cls(
            id=intent.id,
            prompt=intent.prompt,
            response=text,
            endpoint=intent.endpoint,
            model=intent.model,
            user_id=intent.user_id,
            created_at=intent.created_at,
            grounded=intent.grounded,
            request_id=intent.request_id,
            conversation_id=intent.conversation_id,
        )


def schema_ref(
    shape: type, description: str, media_type: str = "application/json"
) -> dict[str, Any]:
    """An OpenAPI response with this schema."""
    return {
        "description": description,
        "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}},
    }


def problem_schemas(**described: str) -> dict[int | str, dict[str, Any]]:
    """Documented problems by status: `problems(_404="no document has this id")`."""
    return {
        int(status[1:]): schema_ref(Problem, text, "application/problem+json")
        for status, text in described.items()
    }


REFUSALS = problem_schemas(
    _400="`foreign_host`: this host name is not served",
    _401="`unauthorized`: credentials are missing or invalid",
    _403="`forbidden`: another role or scope is required; `foreign_origin`: sent by a page of "
    "another site",
    _413="`too_large`: exceeds the limit in `detail`",
    _414="`url_too_long`: send long texts in a body",
    _422="`invalid_request`: the request does not match the schema",
    _500="`internal`: an error of the service; see the log under `request_id`",
    _503="`overloaded`, `shutting_down`, `database_unavailable`, `quota_unavailable`: retry after "
    "`Retry-After`",
)
