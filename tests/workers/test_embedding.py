"""The embedding worker in a service: back-filling, metering, failures of the provider."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from service.core.accounting.audit import audit_log
from service.core.database.tables import chunks
from service.core.limits import ServiceLimits
from service.core.search.embeddings import EMBEDDER, ENDPOINT
from tests.conftest import Serve, Service
from tests.core.search.test_embeddings import TEXTS, keep
from tests.fakes.provider import ProviderFake


async def wait_filled(service: Service, texts: int) -> dict[str, Any]:
    """Until so many texts have their vector, as /health/ready says."""
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await service.client.get("/health/ready")).json()["embedding"]
            if found["state"] == "done" and found["texts"] == found["done"] == texts:
                return found
            await asyncio.sleep(0.01)


async def test_off_by_default(serve: Serve, fake: ProviderFake) -> None:
    """Without the setting nobody is asked for a vector, and nothing speaks of them."""
    service = await serve(openai_base_url=fake.base_url, model="fake-model", seeded=True)
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert found["items"]
    assert "cosine" not in found["items"][0]
    assert "embedding" not in (await service.client.get("/health/ready")).json()
    assert fake.embedded == []
    assert fake.others == []


async def test_the_service_fills_searches_and_meters(serve: Serve, fake: ProviderFake) -> None:
    """Back-filled in batches through a refusal; every call is a row with the provider's usage and its cost, without texts."""
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
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert found["items"][0]["cosine"] > 0
    assert {text for batch in fake.embedded for text in batch} == texts | {"送料はいくらですか？"}

    rows = await service.rows(endpoint=ENDPOINT)
    assert sum(row["attempts"] for row in rows) == len(fake.embedded) == len(rows) + 1
    answered = sum(len(text) for batch in fake.embedded[1:] for text in batch)
    assert sum(row["prompt_tokens"] for row in rows) == answered
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
    """The sum of a metric's samples, whatever their labels."""
    samples = [
        line for line in exposition.splitlines() if line.partition(" ")[0].partition("{")[0] == name
    ]
    return sum(float(line.rpartition(" ")[2]) for line in samples)


async def test_a_billed_embedding_call_is_in_the_metrics(serve: Serve, fake: ProviderFake) -> None:
    """Tokens, cost and calls in the metrics are those of the rows."""
    service = await serve(
        openai_base_url=fake.base_url,
        model="fake-model",
        embeddings="openai",
        embeddings_model="fake-vectors",
        prices={"fake-vectors": {"input": "1", "output": "0"}},
    )
    await keep(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)

    metrics = (await service.client.get("/metrics")).text
    assert metric(metrics, "kotae_tokens_total") == row["total_tokens"] > 0
    assert metric(metrics, "kotae_cost_usd_total") == pytest.approx(float(row["estimated_cost"]))
    assert metric(metrics, "kotae_provider_attempts_total") == row["attempts"] == 1
    assert (
        f'kotae_answers_total{{endpoint="{ENDPOINT}",status="completed",usage_source="provider"}} 1.0'
        in metrics
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
    await keep(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)

    assert row["estimated_cost"] is None
    assert metric((await service.client.get("/metrics")).text, "kotae_unpriced_answers_total") == 1


async def test_the_cosine_that_took_part_is_told(serve: Serve, fake: ProviderFake) -> None:
    """The search, the answer and its row say the cosine that moved the least of the words, where a setting lets it."""
    service = await serve(
        openai_base_url=fake.base_url, model="fake-model", embeddings="openai", relevance_cosine=0.5
    )
    await keep(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    question = "Who polishes the lens?"
    found = (await service.client.get("/ai/search", params={"q": question})).json()
    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
    (row,) = await service.rows(endpoint="/ai/test")
    assert (
        found["cosine"]
        == found["items"][0]["cosine"]
        == answer["relevance_cosine"]
        == row["relevance_cosine"]
    )


async def test_a_provider_that_is_down_costs_no_answer(serve: Serve, fake: ProviderFake) -> None:
    """A question whose vector is refused is answered by words; the call has its row, with the error."""
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
    found = (await service.client.get("/ai/search", params={"q": "送料はいくらですか？"})).json()
    assert "cosine" not in found["items"][0]
    assert found["answerable"]
    failed = [row for row in await service.rows(endpoint=ENDPOINT) if row["status"] != "completed"]
    assert [(row["status"], row["usage_source"], row["estimated_cost"]) for row in failed] == [
        ("provider_error", "unknown", None)
    ]


async def test_a_usage_that_nobody_told_is_estimated(serve: Serve, fake: ProviderFake) -> None:
    """A provider that sends vectors without a usage: its rows are `estimated`, and the account agrees."""
    fake.embedding_usage = False
    service = await serve(openai_base_url=fake.base_url, model="fake-model", embeddings="openai")
    await keep(service.services.database, TEXTS[0], user_id="local")
    await wait_filled(service, 1)
    (row,) = await service.rows(endpoint=ENDPOINT)
    assert row["usage_source"] == "estimated"
    assert row["prompt_tokens"] > 0
    assert (
        await audit_log(service.services.database, service.services.settings.data_dir)
    ).details == []


async def test_nobody_reached_is_nothing_billed(serve: Serve, fake: ProviderFake) -> None:
    """Without a connection the rows say that nothing was used, /health/ready is degraded, and searches go on by words."""
    async with fake.away():
        service = await serve(
            openai_base_url=fake.base_url,
            model="fake-model",
            embeddings="openai",
            limits=ServiceLimits(attempts_max=1),
        )
        await keep(service.services.database, TEXTS[0], user_id="local")
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
