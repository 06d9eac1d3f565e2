"""The shapes that come in, as pydantic checks them, and those that go out, as OpenAPI documents them.

What goes out is encoded by msgspec from the structs of `service.core`; their JSON schemas are
taken from those same structs, so that there is no second definition to fall behind.
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
    """A prompt and how to answer it. Unknown fields are refused."""

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
        description="The question. Its length is bounded by KOTAE_PROMPT_CHARACTERS_MAX (413 beyond)."
    )
    grounded: bool = Field(
        True, description="Answer from the documents, or refuse when they hold nothing relevant."
    )
    model: ModelName | None = Field(
        None, description="A configured model; the default one if absent."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Most completion tokens; bounded by KOTAE_MAX_TOKENS_MAX."
    )
    temperature: float | None = Field(None, ge=0, le=2)
    user_id: UserId | None = Field(None, description="On whose behalf; believed from admins only.")
    documents: DocumentIds | None = Field(
        None, description="Answer from these documents alone; others' ids find nothing."
    )


class TextBody(BaseModel):
    """A document given as JSON."""

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
    shared: bool = Field(False, description="Context for everyone; for admins.")


class LimitsBody(BaseModel):
    """What a user or a key may use. Absent: as much as they like. Costs are USD, as a decimal string."""

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
    concurrent: Count | None = Field(None, description="Answers in progress at once.")

    def limits(self) -> QuotaLimits:
        """As the core has them, money in nano-dollars."""
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
    """A key to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "laptop", "scopes": ["ask"], "expires_in_days": 90}]
        },
    )
    user_id: UserId | None = Field(
        None, description="Whose; one's own if absent. Others' are for admins."
    )
    role: Literal["user", "admin"] = "user"
    scopes: list[Literal["ask", "documents", "logs", "keys"]] | None = Field(
        None, max_length=4, description="Absent: all of the maker's."
    )
    name: Annotated[str, StringConstraints(max_length=100)] = Field(
        "", description="By which people know it."
    )
    expires_at: AwareDatetime | None = None
    expires_in_days: float | None = Field(None, gt=0, le=3650)
    limits: LimitsBody | None = Field(None, description="Of this key, beside those of its user.")


class RotateBody(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid")
    grace_seconds: float = Field(
        86_400, ge=0, le=2_592_000, description="How long the old key stays valid."
    )


class QuotaBody(BaseModel):
    """What a user may use: a plan by name, or limits of their own; neither: the default plan."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"plan": "team"}, {"limits": {"tokens_per_day": 50_000}}]},
    )
    plan: PlanName | None = None
    limits: LimitsBody | None = None


class UserBody(BaseModel):
    """Whether a user's requests are taken."""

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
    """The payload of a stream's `start` event. `resumable` is there where it is False, for want of room."""

    id: str
    model: str
    grounded: bool
    context: list[dict[str, Any]]
    resumable: bool = True


class AnswerStarted(msgspec.Struct):
    """An answer that has begun. `resumable` False: it ends when its reader leaves, because the buffers are full."""

    id: str
    events_url: str
    expires_at: datetime
    resumable: bool


class AnswerInProgress(msgspec.Struct):
    """An answer that has not ended; `response` is its text so far."""

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
        """What is known of an answer in progress."""
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
    """A documented response of this shape."""
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
    _400="`foreign_host`: this name is not served here",
    _401="`unauthorized`: credentials are missing or wrong",
    _403="`forbidden`: another role or scope is needed; `foreign_origin`: a page of another site sent this",
    _413="`too_large`: over a limit that the detail names",
    _422="`invalid_request`: the payload has not the shape of the route",
    _500="`internal`: a fault of the service; `request_id` finds it in the log",
    _503="`overloaded`, `shutting_down`, `database_unavailable`: come back after `Retry-After`",
)


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, components = msgspec.json.schema_components(
            _SHAPES, ref_template="#/components/schemas/{name}"
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components)
        for operations in document[
            "paths"
        ].values():  # FastAPI documents a 422 of its own, which is never sent
            for operation in operations.values():
                operation["responses"].setdefault("422", REFUSALS[422])
                if "HTTPValidationError" in str(operation["responses"]["422"]):
                    operation["responses"]["422"] = REFUSALS[422]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
