"""What the OpenAPI document says about `/v1`; the reference is OpenAI's."""

from typing import Any

from service.api.schemas import REFUSALS, problem_schemas

_REFERENCE = "https://platform.openai.com/docs/api-reference/"
_OPENAI_REFUSALS = {status: text for status, text in REFUSALS.items() if status != 422}
ERRORS = _OPENAI_REFUSALS | problem_schemas(
    _400="The request is not valid (`error.param` names the member), or the provider rejected it",
    _404="`unknown_model` (`error.code`: `model_not_found`)",
    _409="`idempotency_conflict`: the `Idempotency-Key` was used for a different request",
    _429="`quota_exceeded`, or the provider is busy; see `error.code`",
    _502="The provider failed; see `x-should-retry`",
    _503="`overloaded`, `shutting_down`, `provider_busy`, `database_unavailable`, "
    "`quota_unavailable`: retry after `Retry-After`",
    _504="`provider_timeout`: the provider did not respond in time; it may have billed",
)


def describe_body(name: str, required: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """The body of a route, of which only the required members are described."""
    schema = {
        "type": "object",
        "description": f"As in [OpenAI's reference]({_REFERENCE}{name}).",
        "properties": required,
        "required": list(required),
        "additionalProperties": True,
        "examples": [example],
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_MODEL = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\s\x00]+$"}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["developer", "system", "user", "assistant", "tool"]},
        "content": {"type": "string"},
    },
    "required": ["role", "content"],
}
_ERASED = problem_schemas(
    _410="`erased`: the answer of this `Idempotency-Key`, or the previous response, was deleted or "
    "not stored"
)
CHAT_BODY = describe_body(
    "chat/create",
    {"model": _MODEL, "messages": {"type": "array", "items": _MESSAGE, "minItems": 1}},
    {
        "model": "kotae/gpt-5-mini",
        "messages": [{"role": "user", "content": "返品は何日以内にできますか？"}],
    },
)
CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A chat completion, or with `stream: true` its chunks as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **ERRORS,
    **_ERASED,
}
RESPONSES_BODY = describe_body(
    "responses/create",
    {"model": _MODEL, "input": {"type": "string", "minLength": 1}},
    {"model": "kotae/gpt-5-mini", "input": "返品は何日以内にできますか？"},
)
RESPONSES_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A response, or with `stream: true` its events as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **ERRORS,
    **_ERASED,
}
STORED_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As in OpenAI's reference",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **ERRORS,
    **problem_schemas(
        _404="`not_found`: no response has this id, it was not stored, or belongs to another user",
        _410="`erased`: the response was deleted",
    ),
}
_MODEL_OBJECT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
    "required": ["id", "object", "created", "owned_by"],
}
MODELS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The models",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "object": {"const": "list"},
                        "data": {"type": "array", "items": _MODEL_OBJECT},
                    },
                    "required": ["object", "data"],
                }
            }
        },
    },
    **ERRORS,
}
MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The model",
        "content": {"application/json": {"schema": _MODEL_OBJECT}},
    },
    **ERRORS,
}
EMBEDDINGS_BODY = describe_body(
    "embeddings/create",
    {"model": _MODEL, "input": {"type": "string", "minLength": 1}},
    {"model": "text-embedding-3-small", "input": ["返品", "refund"]},
)
EMBEDDINGS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The vectors",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **ERRORS,
}
