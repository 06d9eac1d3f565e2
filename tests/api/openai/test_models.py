"""`GET /v1/models` with the OpenAI SDK."""

import openai
import pytest

from tests.access import SECRET
from tests.conftest import Serve, Service
from tests.openai_clients import openai_client


async def test_each_model_has_a_grounded_variant(service: Service) -> None:
    """The list has the default model and the built-in one, with all members of a model."""
    async with openai_client(service) as client:
        models = [model async for model in client.models.list()]

    assert [model.id for model in models] == [
        "fake-model", "extractive", "kotae/fake-model", "kotae/extractive"
    ]  # fmt: skip
    assert {model.object for model in models} == {"model"}
    assert all(isinstance(model.created, int) and model.owned_by for model in models)


async def test_configured_models_are_listed_only(serve: Serve) -> None:
    """KOTAE_MODELS is the list of models that requests may name."""
    service = await serve(openai_api_key="sk-test", model="a", models=["b", "a"])
    async with openai_client(service) as client:
        names = [model.id async for model in client.models.list()]

    assert names == ["a", "b", "kotae/a", "kotae/b"]


async def test_a_model_is_found_by_its_id(service: Service) -> None:
    """The id of a grounded variant contains a slash."""
    async with openai_client(service) as client:
        model = await client.models.retrieve("kotae/fake-model")

    assert (model.id, model.owned_by) == ("kotae/fake-model", "kotae")


async def test_an_unknown_model_is_not_found(service: Service) -> None:
    """404 with OpenAI's code."""
    async with openai_client(service) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("nope")

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_models_require_a_key(serve: Serve) -> None:
    """Without a valid key: 401."""
    service = await serve(auth="keys", secret=SECRET)
    async with openai_client(service, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
