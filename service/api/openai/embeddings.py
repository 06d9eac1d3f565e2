"""`POST /v1/embeddings`."""

import base64
from array import array
from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Request, Response

from service.api.answers import CLIENT_CLOSED_REQUEST
from service.api.dependencies import AnyQueryAskPrincipal, ServicesDep
from service.api.json_bodies import read_body
from service.api.openai.chat_body import Identifier, decode_body
from service.api.openai.documentation import EMBEDDINGS_BODY, EMBEDDINGS_RESPONSES
from service.api.responses import json_response
from service.api.waiting import wait_done
from service.core import tokens
from service.core.answering.embedding_calls import EmbeddingRequest, EmbeddingResponse
from service.core.auth.principals import Principal
from service.core.encoding import to_json
from service.core.errors import InvalidRequest
from service.core.pricing import format_usd

INPUTS_MAX = 2_048
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Tokens = Annotated[list[int], msgspec.Meta(min_length=1)]

router = APIRouter(prefix="/v1", tags=["openai"])


class _EmbeddingBody(msgspec.Struct):
    """The members of a body that are validated."""

    model: Identifier
    input: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)] | _Text
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


_body_decoder = msgspec.json.Decoder(_EmbeddingBody)


@router.post("/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=EMBEDDINGS_RESPONSES)
async def create_embeddings(
    request: Request, services: ServicesDep, principal: AnyQueryAskPrincipal
) -> Response:
    """Vectors of texts or of lists of tokens, from the provider or the model in this process."""
    if "idempotency-key" in request.headers:
        raise InvalidRequest("Idempotency-Key is not supported here: vectors are not stored")
    raw = await read_body(request, principal.user_id)
    parse = partial(_parse, raw, request, principal)
    body, embedding_request = await anyio.to_thread.run_sync(parse)
    if body.model == services.embedding_calls.local_model and body.dimensions is not None:
        raise InvalidRequest(
            f"dimensions: {body.model} has a fixed number", extra={"param": "dimensions"}
        )
    task = services.embedding_calls.start(embedding_request)
    try:
        await wait_done(request.scope, request.receive, task)
    finally:
        task.cancel()  # no effect if it is done
    if not task.done() or task.cancelled():
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    response = task.result()
    outcome = response.outcome
    headers = {}
    if outcome.cost_nano_usd is not None:
        headers["x-kotae-cost"] = format_usd(outcome.cost_nano_usd)
    encoded = await anyio.to_thread.run_sync(_build_body, body, response)
    return json_response(msgspec.Raw(encoded), headers=headers)


def _parse(
    raw: bytes, request: Request, principal: Principal
) -> tuple[_EmbeddingBody, EmbeddingRequest]:
    """Validate a body. Raises `InvalidRequest`."""
    raw, body = decode_body(raw, _body_decoder)
    texts, count = _read_inputs(body.input)
    bound = len(raw) if texts is not None else count
    return body, EmbeddingRequest(
        model=body.model,
        body=raw,
        texts=texts,
        tokens_max=bound + tokens.TEMPLATE_TOKENS * (len(texts) if texts else 1),
        endpoint=request.scope["route"].path,
        user_id=principal.user_id,
        request_id=request.scope["request_id"],
        key_id=principal.key_id,
        subjects=principal.quota_subjects,
        principal=principal,
    )


def _read_inputs(value: str | list[Any]) -> tuple[list[str] | None, int]:
    """The texts, or None and the number of tokens. Raises `InvalidRequest`."""
    if isinstance(value, str):
        return [value], 0
    for kind in (list[_Text], _Tokens, list[_Tokens]):
        try:
            items: list[Any] = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
        if isinstance(items[0], str):
            return items, 0
        return None, sum(len(item) if isinstance(item, list) else 1 for item in items)
    raise InvalidRequest(
        "input: must be a text, a list of texts, a list of tokens or a list of such lists, all "
        "of them not empty",
        extra={"param": "input"},
    )


def _build_body(body: _EmbeddingBody, response: EmbeddingResponse) -> bytes:
    """The response as the provider sent it, or the vectors of this process; with the usage."""
    outcome = response.outcome
    usage: dict[str, Any] = {"source": outcome.usage_source, "cost": None}
    if outcome.usage is not None:
        count = outcome.usage.prompt_tokens
        usage |= {"prompt_tokens": count, "total_tokens": count}
    if outcome.cost_nano_usd is not None:
        usage["cost"] = msgspec.Raw(format_usd(outcome.cost_nano_usd).encode())
    if response.body is not None:
        return to_json(response.body | {"usage": (response.body.get("usage") or {}) | usage})
    data = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(body, vector)}
        for index, vector in enumerate(response.vectors or ())
    ]
    return to_json({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encode_vector(body: _EmbeddingBody, vector: bytes) -> str | list[float]:
    if body.encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return array("f", vector).tolist()
