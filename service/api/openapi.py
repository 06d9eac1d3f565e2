"""The OpenAPI document: what FastAPI derives from the routes, completed for client generators.

Schemas of responses come from the msgspec structs that are sent. Operation ids are the names of the
functions. Security schemes are declared per operation: from the credential that its route requires.
"""

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.api import shapes
from service.api.dependencies import COOKIE
from service.api.schemas import (
    REFUSALS,
    AnswerInProgress,
    AnswerStarted,
    Problem,
    StartEvent,
    TextBody,
)
from service.core.accounting.conversations import ConversationPage
from service.core.accounting.receipts import Receipt, ReceiptPage
from service.core.audit_log import AuditPage
from service.core.auth.store import ApiKey
from service.core.billing.accounts import EntryObject, WalletPage
from service.core.billing.checkout import CreatedSession
from service.core.billing.meter_events import EventObject
from service.core.billing.reconciliation import BillingReconciliation
from service.core.billing.review import BillingStatus
from service.core.budgets.spend import BudgetObject
from service.core.documents.library import Document, DocumentPage
from service.core.records import Answer, DamagedAnswer
from service.core.search.results import SearchResults

_SHAPES = [
    Answer,
    AnswerInProgress,
    AnswerStarted,
    ApiKey,
    BillingReconciliation,
    BillingStatus,
    BudgetObject,
    ConversationPage,
    CreatedSession,
    Document,
    DocumentPage,
    DamagedAnswer,
    EntryObject,
    EventObject,
    Problem,
    Receipt,
    ReceiptPage,
    SearchResults,
    StartEvent,
    WalletPage,
    shapes.WalletAccount,
    shapes.AlertList,
    shapes.AlertObject,
    shapes.AnalyticsPage,
    shapes.Reconciliation,
    AuditPage,
    shapes.BudgetList,
    shapes.ConversationThread,
    shapes.CustomerList,
    shapes.CustomerObject,
    shapes.DeltaEvent,
    shapes.ErasedTexts,
    shapes.KeyList,
    shapes.KeySet,
    shapes.Liveness,
    shapes.LogRowPage,
    shapes.InboxList,
    shapes.MeterEventList,
    shapes.PartialUploadResult,
    shapes.PlanList,
    shapes.PlanSettings,
    shapes.PortalSession,
    shapes.Readiness,
    shapes.SessionInfo,
    shapes.UploadResult,
    shapes.UsageReport,
    shapes.UserPage,
    shapes.UserQuota,
    shapes.UserSettings,
    shapes.WebhookReceived,
]
_REF = "#/components/schemas/"
_SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`kt_…`), a JWT, or `KOTAE_SECRET`.",
    },
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same values in another header.",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The same values as the password; the user name is ignored.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "From `POST /auth/session`; over TLS the cookie is `__Host-kotae`.",
    },
}
_TICKET_SCHEME = {
    "type": "apiKey",
    "in": "query",
    "name": "ticket",
    "description": "From `events_url`: reads one answer.",
}
_TAGS = {
    "answers": "Ask questions and follow answers.",
    "openai": "The OpenAI protocol, for any of its clients.",
    "documents": "Upload, list, delete and search documents.",
    "logs": "The log: one row per answer.",
    "analytics": "Usage, cost and latency by group and time.",
    "keys": "API keys.",
    "quotas": "Usage, limits, plans and users.",
    "billing": "Customers at Stripe and their meter events.",
    "wallets": "Prepaid credit: balances, entries and top-ups.",
    "session": "Browser sessions.",
    "health": "Liveness, readiness and metrics.",
}
_EVENTS = {
    "start": "StartEvent",
    "message": "DeltaEvent",  # unnamed on the wire
    "done": "DoneEvent",
    "failure": "Problem",
}
# Most generators treat a stream as a string; tools that parse streams validate each event.
_STREAM_SCHEMA = {
    "description": "An event stream; each event has the form of `StreamEvent`.",
    "if": {"type": "object"},
    "then": {"$ref": _REF + "StreamEvent"},
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds until a retry is useful.",
        "schema": {"type": "integer", "minimum": 0},
    }
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "Problem": {
        "type": "urn:kotae:problem:quota_exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "detail": "tokens_per_day: 5000 of 5000 used",
        "code": "quota_exceeded",
        "request_id": "01a2b3c4d5e6",
    },
    "DeltaEvent": {"delta": "返品は30日以内"},
    "AnswerStarted": {
        "id": "01a2b3c4-0000-7000-8000-000000000000",
        "events_url": "/ai/answers/01a2b3c4-0000-7000-8000-000000000000/events?ticket=…",
        "expires_at": "2026-01-01T00:00:30Z",
        "resumable": True,
    },
}


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """Build the OpenAPI document once per application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            servers=[{"url": "/"}],
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = _SECURITY_SCHEMES | {"ticket": _TICKET_SCHEME}
        schemas = components.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(_build_schemas())
        schemas["TextBody"] = TextBody.model_json_schema()  # its route reads the body itself
        for route, operation in _list_operations(app, document):
            _complete_operation(route, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _build_schemas() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(_SHAPES, ref_template=_REF + "{name}")
    for name, example in _EXAMPLES.items():
        schemas[name]["examples"] = [example]
    answer = schemas["Answer"]
    texts = {"prompt", "response"}
    schemas["DoneEvent"] = answer | {
        "title": "DoneEvent",
        "description": "The payload of the `done` event: the answer without prompt and response.",
        "properties": {
            name: value for name, value in answer["properties"].items() if name not in texts
        },
        "required": [name for name in answer["required"] if name not in texts],
    }
    passage = schemas["Passage"]
    required = [name for name in passage["required"] if name not in {"title", "text"}]
    source = passage | {"title": "ListedSource", "required": required}
    schemas["ListedAnswer"] = answer | {
        "title": "ListedAnswer",
        "description": "A row of a list: sources have no texts; with `fields`, only those fields.",
        "properties": answer["properties"] | {"sources": {"type": "array", "items": source}},
        "required": [],
    }
    schemas["StreamEvent"] = {
        "description": "An event of a stream; `data` is JSON.",
        "anyOf": [_build_event_schema(name, shape) for name, shape in _EVENTS.items()],
    }
    return {name: _simplify_schema(schema) for name, schema in schemas.items()}


def _build_event_schema(name: str, shape: str) -> dict[str, Any]:
    return {
        "title": f"{name.title()}StreamEvent",
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "`{answer id}.{characters so far}`"},
            "event": {"const": name},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": _REF + shape},
            },
        },
        "required": ["data"] if name == "message" else ["event", "data"],
    }


def _simplify_schema(schema: Any) -> Any:
    """Describe tuples as arrays of fixed length, and remove the indentation of docstrings.

    Client generators reject `prefixItems` with `items: false`.
    """
    if isinstance(schema, list):
        return [_simplify_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: _simplify_schema(value) for name, value in schema.items()}
    if isinstance(text := schema.get("description"), str):
        schema["description"] = cleandoc(text)
    if schema.get("items") is False and (types := schema.pop("prefixItems", [])):
        schema["items"] = types[0] if all(item == types[0] for item in types) else {"anyOf": types}
    return schema


def _list_operations(
    app: FastAPI, document: dict[str, Any]
) -> Iterator[tuple[APIRoute, dict[str, Any]]]:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                yield route, document["paths"][route.path_format][method.lower()]


def _complete_operation(route: APIRoute, operation: dict[str, Any]) -> None:
    operation["operationId"] = route.name
    operation["security"] = _list_security(route)
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422", "HTTPValidationError")):
        responses["422"] = REFUSALS[422]  # the 422 that FastAPI documents is never sent
    for status in {"429", "503"} & responses.keys():
        responses[status] = responses[status] | {"headers": _RETRY_AFTER}
    for status, response in responses.items():
        if "text/event-stream" in (content := response.get("content", {})):
            stream = content["text/event-stream"] | {"schema": _STREAM_SCHEMA}
            responses[status] = response | {"content": {"text/event-stream": stream}}
    if (schema := _get_json_schema(operation)) and "anyOf" in schema:
        # An optional body may be absent, not null.
        schema.update(next(item for item in schema.pop("anyOf") if "$ref" in item))


def _get_json_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """The schema of the JSON body of an operation; empty if it has none."""
    content = operation.get("requestBody", {}).get("content", {})
    schema: dict[str, Any] = content.get("application/json", {}).get("schema", {})
    return schema


def _list_security(route: APIRoute) -> list[dict[str, list[str]]]:
    """The alternative credentials of a route; none for a public one."""
    dependencies = route.dependant.dependencies
    if not any(hasattr(dependency.call, "requires") for dependency in dependencies):
        return []
    parameters = {field.alias for item in dependencies for field in item.query_params}
    names = [*_SECURITY_SCHEMES, *(["ticket"] if "ticket" in parameters else [])]
    return [{name: []} for name in names]
