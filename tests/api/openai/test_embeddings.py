"""`POST /v1/embeddings` with the OpenAI SDK and over plain HTTP."""

import base64
from array import array
from typing import Any

import openai
import pytest

from service.core.ports import QuotaLimits
from tests.access import SECRET, make_key
from tests.conftest import Serve, Service
from tests.fakes.provider import ProviderFake
from tests.openai_clients import openai_client

MODEL = "fake-vectors"


@pytest.fixture
async def priced(serve: Serve, fake: ProviderFake) -> Service:
    """A service whose embedding model has a price."""
    prices = {MODEL: {"input": "1", "output": "0"}}
    return await serve(openai_base_url=fake.base_url, model="fake-model", prices=prices)


async def test_the_sdk_gets_vectors(priced: Service, fake: ProviderFake) -> None:
    """It asks for base64; the row has the provider's usage, the cost, and no texts."""
    async with openai_client(priced) as client:
        result = await client.embeddings.create(model=MODEL, input=["abc", "de"])

    assert fake.embedding_bodies[0]["encoding_format"] == "base64"
    assert [vector.embedding[-1] for vector in sorted(result.data, key=lambda v: v.index)] == [1, 1]
    row = await priced.row()
    assert row["prompt_tokens"] == result.usage.prompt_tokens == len("abcde")
    assert (row["endpoint"], row["model"]) == ("/v1/embeddings", MODEL)
    assert (row["usage_source"], row["estimated_cost"]) == ("provider", "0.000005")
    assert (row["prompt"], row["completion_tokens"]) == ("", 0)


@pytest.mark.parametrize("value", ["abc", ["abc"], [1, 2, 3], [[1, 2, 3]]])
async def test_each_kind_of_input_reaches_the_provider(
    priced: Service, fake: ProviderFake, value: Any
) -> None:
    """Texts and tokens are passed on unchanged, with unknown members."""
    body = {"model": MODEL, "input": value, "dimensions": 3, "user": "u", "new": [1.50]}

    response = await priced.client.post("/v1/embeddings", json=body)

    assert response.status_code == 200
    assert fake.embedding_bodies == [body]
    assert response.json()["usage"] | {"cost": 0} == {
        "prompt_tokens": 3, "total_tokens": 3, "source": "provider", "cost": 0
    }  # fmt: skip
    assert response.headers["x-kotae-cost"] == "0.000003"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["a"] * 2_049}, "input"),
        ({"model": ""}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
async def test_invalid_members_are_named(
    priced: Service, members: dict[str, Any], param: str
) -> None:
    """400 with `param`; nothing is charged."""
    body = {"model": MODEL, "input": "a"} | members

    response = await priced.client.post("/v1/embeddings", json=body)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert await priced.rows() == []


async def test_a_failure_has_a_row(priced: Service, fake: ProviderFake) -> None:
    """A provider's 400 is passed on, and is in the log."""
    fake.embedding_statuses.append(400)
    async with openai_client(priced) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=MODEL, input="a")

    assert caught.value.message
    row = await priced.row()
    assert (row["status"], row["error_code"]) == ("provider_error", "provider_rejected")


async def test_usage_is_estimated_if_the_provider_omits_it(
    priced: Service, fake: ProviderFake
) -> None:
    """The response and the row have the same number."""
    fake.embedding_usage = False
    response = await priced.client.post("/v1/embeddings", json={"model": MODEL, "input": [5, 6]})

    row = await priced.row()
    assert row["usage_source"] == response.json()["usage"]["source"] == "estimated"
    assert row["prompt_tokens"] == response.json()["usage"]["prompt_tokens"] > 0


async def test_quotas_are_held(serve: Serve, fake: ProviderFake) -> None:
    """A request beyond the quota is rejected before the provider is called."""
    service = await serve(
        auth="keys", secret=SECRET, openai_base_url=fake.base_url, model="fake-model"
    )
    key = await make_key(service, "alice", limits=QuotaLimits(tokens_per_day=100))
    async with openai_client(service, str(key.key)) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=MODEL, input="x" * 200)
        await client.embeddings.create(model=MODEL, input="x")

    assert caught.value.code == "beyond_quota"
    assert (await service.row())["user_id"] == "alice"


async def test_without_a_provider_there_is_no_model(serve: Serve) -> None:
    """404 with OpenAI's code."""
    service = await serve()
    response = await service.client.post("/v1/embeddings", json={"model": MODEL, "input": "a"})

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_idempotency_keys_are_rejected(priced: Service) -> None:
    """They would promise a replay."""
    response = await priced.client.post(
        "/v1/embeddings",
        json={"model": MODEL, "input": "a"},
        headers={"Idempotency-Key": "k"},
    )

    assert response.status_code == 400


async def test_base64_has_the_same_numbers(priced: Service) -> None:
    """Both formats are passed on."""
    body = {"model": MODEL, "input": "abc"}
    floats = (await priced.client.post("/v1/embeddings", json=body)).json()
    encoded = (
        await priced.client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})
    ).json()

    data = base64.b64decode(encoded["data"][0]["embedding"])
    assert array("f", data).tolist() == floats["data"][0]["embedding"]
