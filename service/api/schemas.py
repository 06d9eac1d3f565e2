"""Request models, validated by pydantic, and response schemas for OpenAPI.

Responses are encoded by msgspec from the structs of `service.core`; their JSON schemas are derived
from the same structs, so there is no second definition.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from service.core.accounting.log import LogPage
from service.core.auth.store import ApiKey
from service.core.documents.library import Document, DocumentPage
from service.core.ports import QuotaLimits
from service.core.pricing import to_nano_usd
from service.core.records import Answer, Intent
from service.core.search.results import SearchResults

NotBlank = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
UserId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
PlanName = Annotated[
    str, StringConstraints(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9._-]+$")
]
Count = Annotated[int, Field(ge=0, le=10**15)]
Money = Annotated[Decimal, Field(ge=0, le=10**6, max_digits=15, decimal_places=9)]


DocumentIds = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=64)]],
    Field(min_length=1, max_length=100),
]


class AskBody(BaseModel):
    """A prompt with options. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "返品は何日以内にできますか？"},
                {
                    "prompt": "Write a haiku about streams.",
                    "grounded": False,
                    "max_tokens": 60,
                    "temperature": 0.7,
                },
            ]
        },
    )
    prompt: NotBlank = Field(
        description="The question, at most KOTAE_PROMPT_CHARACTERS_MAX characters (413)."
    )
    grounded: bool = Field(
        True, description="Answer from the documents, or refuse without relevant passages."
    )
    model: ModelName | None = Field(None, description="A configured model; default: KOTAE_MODEL.")
    max_tokens: int | None = Field(
        None, ge=1, description="Maximum completion tokens, at most KOTAE_MAX_TOKENS_MAX."
    )
    temperature: float | None = Field(None, ge=0, le=2)
    user_id: UserId | None = Field(None, description="The user to answer for; for admins.")
    documents: DocumentIds | None = Field(None, description="Use only these documents.")


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
    shared: bool = Field(False, description="Visible to all users; requires an admin.")


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

    def limits(self) -> QuotaLimits:
        """Convert to the internal form, with money in nano-dollars."""
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
    expires_at: AwareDatetime | None = None
    expires_in_days: float | None = Field(None, gt=0, le=3650)
    limits: LimitsBody | None = Field(
        None, description="Limits of this key, besides those of its user."
    )


class RotateBody(BaseModel):
    """Options of a key rotation."""

    model_config = ConfigDict(extra="forbid")
    grace_seconds: float = Field(
        86_400, ge=0, le=2_592_000, description="How long the old key stays valid."
    )


class QuotaBody(BaseModel):
    """A plan by name, or individual limits; neither means the default plan."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"plan": "team"}, {"limits": {"tokens_per_day": 50_000}}]},
    )
    plan: PlanName | None = None
    limits: LimitsBody | None = None


class UserBody(BaseModel):
    """Whether a user is disabled."""

    model_config = ConfigDict(extra="forbid")
    disabled: bool


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
    context: list[dict[str, Any]]
    resumable: bool = True


class AnswerStarted(msgspec.Struct):
    """A started answer. `resumable` false: it ends with its reader, the stream buffers are full."""

    id: str
    events_url: str
    expires_at: datetime
    resumable: bool


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
        )


_SHAPES = [
    Answer,
    LogPage,
    SearchResults,
    Document,
    DocumentPage,
    ApiKey,
    Problem,
    StartEvent,
    AnswerStarted,
    AnswerInProgress,
]


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
    _422="`invalid_request`: the request does not match the schema",
    _500="`internal`: an error of the service; see the log under `request_id`",
    _503="`overloaded`, `shutting_down`, `database_unavailable`: retry after `Retry-After`",
)


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, created once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, components = msgspec.json.schema_components(
            _SHAPES, ref_template="#/components/schemas/{name}"
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components)
        # FastAPI documents its own 422, which is never sent.
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].setdefault("422", REFUSALS[422])
                if "HTTPValidationError" in str(operation["responses"]["422"]):
                    operation["responses"]["422"] = REFUSALS[422]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
