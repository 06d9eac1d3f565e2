"""The embedding worker in a service: back-filling, metering, failures of the provider."""

import asyncio
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from service.core.accounting.audit import audit_log
from service.core.database.tables import chunks
from service.core.limits import ServiceLimits
from service.core.search.embeddings import EMBEDDER, ENDPOINT
from tests.conftest import Serve, Service
from tests.core.search.test_embeddings import TEXTS, store_texts
from tests.fakes.provider import ProviderFake


async def wait_filled(service: Service, texts: int) -> dict[str, Any]:
    """Wait until `texts` texts have a vector, and return the statistics in /health/ready."""
    worker = service.services.workers["embedding"]
    async with asyncio.timeout(20):
        while True:
            results: dict[str, Any] = msgspec.to_builtins(worker.statistics())
            if results["state"] == "done" and results["texts"] == results["done"] == texts:
                return results
            await asyncio.sleep(0.01)


async def test_off_by_default(serve: Serve, fake: ProviderFake) -> None:
    """Without the setting no vector is computed, and no response mentions vectors."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", seeded=True)
    results = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert results["items"]
    assert "cosine" not in results["items"][0]
    assert "embedding" not in (await service.client.get("/health/ready")).json()
    assert fake.embedded == []
    assert fake.others == []


async def test_back_filling_is_metered(serve: Serve, fake: ProviderFake) -> None:
    """Each call, also after a refusal, has a row with usage and cost and without texts."""
    fake.embedding_statuses.append(429)
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        embeddings_model="fake-vectors",
        prices={"fake-vectors": {"input": "1", "output": "0"}},
        seeded=True,
    )
    async with service.services.database.read_session() as session:
        texts = set((await session.execute(sa.select(chunks.c.text))).scalars())
    await wait_filled(service, len(texts))
    results = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert results["items"][0]["cosine"] > 0
    assert {text for batch in fake.embedded for text in batch} == texts | {"送料はいくらですか？"}

    rows = await service.rows(endpoint=ENDPOINT)
    assert sum(row["attempts"] for row in rows) == len(fake.embedded) == len(rows) + 1
    characters = sum(len(text) for batch in fake.embedded[1:] for text in batch)
    assert sum(row["prompt_tokens"] for row in rows) == characters
    assert {
        (row["user_id"], row["status"], row["usage_source"], row["prompt"]) for row in rows
    } == {(EMBEDDER, "completed", "provider", "")}
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).details == []
    assert all(
        float(row["estimated_cost"]) == pytest.approx(row["prompt_tokens"] / 1e6) for row in rows
    )


def metric(exposition: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    samples = [
        line for line in exposition.splitlines() if line.partition(" ")[0].partition("{")[0] == name
    ]
    return sum(float(line.rpartition(" ")[2]) for line in samples)


async def test_a_billed_embedding_call_is_in_the_metrics(serve: Serve, fake: ProviderFake) -> None:
    """Tokens, cost and calls in the metrics equal those of the rows."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        embeddings_model="fake-vectors",
        prices={"fake-vectors": {"input": "1", "output": "0"}},
    )
    await store_texts(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)

    metrics = (await service.client.get("/metrics")).text
    assert metric(metrics, "kotae_tokens_total") == row["total_tokens"] > 0
    assert metric(metrics, "kotae_cost_usd_total") == pytest.approx(float(row["estimated_cost"]))
    assert metric(metrics, "kotae_provider_attempts_total") == row["attempts"] == 1
    assert (
        f'kotae_answers_total{{endpoint="{ENDPOINT}",status="completed",'
        'usage_source="provider"} 1.0' in metrics
    )


async def test_an_embedding_call_without_a_price_is_counted_as_unpriced(
    serve: Serve, fake: ProviderFake
) -> None:
    """The row has no cost, and `kotae_unpriced_answers_total` counts it."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        embeddings_model="fake-vectors",
    )
    await store_texts(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)

    assert row["estimated_cost"] is None
    assert metric((await service.client.get("/metrics")).text, "kotae_unpriced_answers_total") == 1


async def test_the_cosine_is_reported(serve: Serve, fake: ProviderFake) -> None:
    """The search, the answer and its row have the cosine that adjusted the thresholds."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", embeddings="openai", relevance_cosine=0.5
    )
    await store_texts(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    question = "Who polishes the lens?"
    results = (await service.client.get("/ai/search", params={"q": question})).json()
    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
    (row,) = await service.rows(endpoint="/ai/test")
    assert (
        results["cosine"]
        == results["items"][0]["cosine"]
        == answer["relevance_cosine"]
        == row["relevance_cosine"]
    )


async def test_a_failing_provider_does_not_prevent_answers(
    serve: Serve, fake: ProviderFake
) -> None:
    """If the embedding of a question fails, words decide, and the call has a row with the error."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        limits=ServiceLimits(attempts_max=1),
        seeded=True,
    )
    async with service.services.database.read_session() as session:
        texts = set((await session.execute(sa.select(chunks.c.text))).scalars())
    await wait_filled(service, len(texts))
    fake.embedding_statuses.append(500)
    results = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert "cosine" not in results["items"][0]
    assert results["answerable"]
    failed = [row for row in await service.rows(endpoint=ENDPOINT) if row["status"] != "completed"]
    assert [(row["status"], row["usage_source"], row["estimated_cost"]) for row in failed] == [
        ("provider_error", "unknown", None)
    ]


async def test_missing_usage_is_estimated(serve: Serve, fake: ProviderFake) -> None:
    """Rows of a provider that reports no usage are `estimated`, and the audit passes."""
    fake.embedding_usage = False
    service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai")
    await store_texts(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)
    assert row["usage_source"] == "estimated"
    assert row["prompt_tokens"] > 0
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).details == []


async def test_unreachable_providers_bill_nothing(serve: Serve, fake: ProviderFake) -> None:
    """Without a connection rows have no usage, health is degraded, and words decide."""
    async with fake.away():
        service = await serve(
            openai_base_url=fake.base_url,
            model="fake-model",
            embeddings="openai",
            limits=ServiceLimits(attempts_max=1),
        )
        await store_texts(service.services.database, TEXTS[0], user_id="local")
        async with asyncio.timeout(20):
            while (await service.client.get("/health/ready")).json()["embedding"][
                "state"
            ] != "delayed":
                await asyncio.sleep(0.01)
        assert (await service.client.get("/health/ready")).json()["status"] == "degraded"
        assert (
            await service.client.get("/ai/search", params={"q": "lens of the lighthouse"})
        ).json()["items"]
        rows = await service.rows(endpoint=ENDPOINT)
    assert rows
    assert {(row["status"], row["usage_source"], row["total_tokens"]) for row in rows} == {
        ("provider_error", "none", 0)
    }
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).details == []
