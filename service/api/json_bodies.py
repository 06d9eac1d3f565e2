"""JSON bodies are read after authentication and rejected at a cost independent of their size.

pydantic builds an object for every value and every error, also of unknown fields: a body of 10 MB
with a million unknown fields took half a minute and a gigabyte. Therefore msgspec decodes a body
into a struct with the fields of the model and stops at the first unknown field and at the first
unexpected array or object. The model then validates the remaining values. All errors are listed
only for small bodies.

JSON is UTF-8; the last value of a repeated field counts; lone surrogates become U+FFFD; unexpected
nesting is an error.
"""

import json
import re
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import anyio.to_thread
import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.core.auth.principals import Principal
from service.core.errors import InvalidRequest

EXPLAINED_BYTES_MAX = 4_096  # larger bodies report only their first error
THREAD_BYTES_MIN = 65_536  # larger bodies are decoded in a thread
_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_MESSAGES = {"Input data was truncated": "JSON is malformed: it ends early (truncated)"}
_MODEL_TYPES = {"model_type", "model_attributes_type"}  # the message of pydantic names a class
_NOT_AN_OBJECT = "must be a JSON object"
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<where>.*)`)?", re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)
Scalar = str | int | float | bool | None


class BodyRoute(APIRoute):
    """A route that authenticates before it reads the body, and rejects invalid JSON cheaply."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        calls = [dependency.call for dependency in self.dependant.dependencies]
        self._authenticate: Any = next((call for call in calls if hasattr(call, "requires")), None)
        annotations = [parameter.field_info.annotation for parameter in self.dependant.body_params]
        self._models = [
            model for annotation in annotations for model in get_args(annotation) or (annotation,)
        ]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that this route matches."""
        if not self._models or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        principal: Principal = await self._authenticate(request)
        raw = await read_body(request, principal.user_id)
        if raw or type(None) not in self._models:
            decode_json(raw, self._models[0])
        await super().handle(scope, replay_body(raw, receive), send)


async def read_model(request: Request, model: type[Model], user_id: str) -> Model:
    """The body as a model. Raises `RequestValidationError`, and like `read_body`."""
    raw = await read_body(request, user_id)
    if len(raw) < THREAD_BYTES_MIN:
        return validate_json(raw, model)
    return await anyio.to_thread.run_sync(validate_json, raw, model)


async def read_body(request: Request, user_id: str) -> bytes:
    """The JSON body of a request, may be empty.

    Raises `InvalidRequest` for other content types, and `Overloaded`.
    """
    message = await request.receive()
    raw: bytes = message.get("body", b"")
    if message.get("more_body", False) or message["type"] == "http.disconnect":
        raw = await _receive_rest(request, message, user_id)
    if raw and not _JSON_TYPE.fullmatch(request.headers.get("content-type") or ""):
        raise InvalidRequest(
            "the body must be JSON, with the header Content-Type: application/json"
        )
    return raw


async def _receive_rest(request: Request, message: Message, user_id: str) -> bytes:
    parts: list[bytes] = []
    with request.state.services.body_budget.begin_body(user_id) as add_bytes:
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            add_bytes(len(parts[-1]))
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await request.receive()
    raise HTTPException(400, "the body ended early")


def replay_body(raw: bytes, receive: Receive) -> Receive:
    """A `receive` that starts with a body that has been read already."""
    unread = [raw]

    async def receive_again() -> Message:
        return (
            {"type": "http.request", "body": unread.pop(), "more_body": False}
            if unread
            else await receive()
        )

    return receive_again


def validate_json(raw: bytes, model: type[Model]) -> Model:
    """The body as a model. Raises `RequestValidationError`."""
    try:
        return model.model_validate(decode_json(raw, model), from_attributes=True)
    except ValidationError as error:
        raise RequestValidationError(describe_errors(error)) from None


def decode_json(raw: bytes, model: type[Model]) -> msgspec.Struct:
    """The body as a struct for the model to validate. Raises `RequestValidationError`."""
    decode = create_decoder(model).decode
    try:
        return decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        refusal = error
    try:
        return decode(repair_surrogates(raw))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise RequestValidationError(list_errors(raw, model, refusal)) from None


def repair_surrogates(raw: bytes) -> bytes:
    """The body without a byte order mark, and with U+FFFD instead of lone surrogates."""
    return _ESCAPE.sub(_replace_lone_surrogate, raw.removeprefix(_BYTE_ORDER_MARK))


@lru_cache
def create_decoder(model: type[BaseModel]) -> msgspec.json.Decoder[msgspec.Struct]:
    """A decoder for JSON objects that have only the fields of the model."""
    return msgspec.json.Decoder(_create_struct(model))


def _create_struct(model: type[BaseModel]) -> type[msgspec.Struct]:
    fields: list[Any] = [
        (
            name,
            _get_json_type(field.annotation),
            *([] if field.is_required() else [field.get_default(call_default_factory=True)]),
        )
        for name, field in model.model_fields.items()
    ]
    return msgspec.defstruct(model.__name__, fields, forbid_unknown_fields=True, kw_only=True)


def _get_json_type(annotation: Any) -> Any:
    """The accepted JSON: an object with known fields, a scalar, or an array of either."""
    if get_origin(annotation) is Annotated:
        return _get_json_type(get_args(annotation)[0])
    if get_origin(annotation) is list:
        return list[_get_json_type(get_args(annotation)[0])] | None  # type: ignore[misc]  # at run time
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _create_struct(annotation) | None
    if get_origin(annotation) in {Union, UnionType}:
        return next(
            (kind for part in get_args(annotation) if (kind := _get_json_type(part)) != Scalar),
            Scalar,
        )
    return Scalar


def _replace_lone_surrogate(match: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if match[1] else match[0]


def list_errors(raw: bytes, model: type[BaseModel], error: Exception) -> list[dict[str, Any]]:
    """All errors of a small body, the first error of a large one."""
    if not raw:
        return [{"loc": ("body",), "msg": "the body is empty; a JSON object is required"}]
    if len(raw) <= EXPLAINED_BYTES_MAX:
        try:
            model.model_validate(json.loads(raw.removeprefix(_BYTE_ORDER_MARK).decode()))
        except ValidationError as invalid:
            return describe_errors(invalid)
        except (ValueError, RecursionError):
            pass
    match = _PLACE.fullmatch(str(error))
    message, location = (match["what"], match["where"]) if match else (str(error), None)
    return [
        {
            "loc": ("body", *(location or "").strip(".").split(".")) if location else ("body",),
            "msg": _MESSAGES.get(message, message[:200]),
        }
    ]


def describe_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Errors without the input, which may be a secret in the wrong field."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    return [
        {
            **item,
            "loc": ("body", *item["loc"]),
            "msg": _NOT_AN_OBJECT if item["type"] in _MODEL_TYPES else item["msg"],
        }
        for item in errors
    ]
