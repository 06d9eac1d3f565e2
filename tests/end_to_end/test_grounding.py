"""Documents, questions, cited answers and refusals over HTTP, in Japanese and in English."""

from typing import Any

import pytest

from service.core.grounding.prompt import GROUNDED_RULES, parse_messages
from service.core.records import Message
from tests.conftest import Serve, Service
from tests.core.grounding.test_prompt import IMAGES, INJECTIONS
from tests.fakes.provider import Behaviour, ProviderFake
from tests.sse import collect, text_of

JA = (
    "星見図書館の利用案内。\n\n開館時間は午前9時から午後8時までです。休館日は毎週火曜日です。"
    "貸出は一人10冊まで、期間は2週間です。延滞した本は郵送でも返せます。"
)
EN = (
    "Hoshimi library.\n\nThe reading room closes at 8 pm."
    " Members may borrow ten books for two weeks. Laptops can be borrowed at the desk."
)


async def upload(service: Service, **body: Any) -> dict[str, Any]:
    """Upload a document as JSON."""
    response = await service.client.post("/ai/upload", json=body)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


@pytest.mark.parametrize(
    ("title", "text", "question", "expected"),
    [
        ("図書館", JA, "図書館の貸出は何冊までですか？", "10冊"),
        ("図書館", JA, "図書館の休館日はいつですか", "火曜日"),
        ("Library", EN, "How many books may members borrow?", "ten books"),
        ("Library", EN, "When does the reading room close?", "8 pm"),
    ],
)
async def test_an_uploaded_text_answers_a_question_and_is_cited(
    serve: Serve, title: str, text: str, question: str, expected: str
) -> None:
    """The answer has the text's content, cites it by [n], and names the document as its source."""
    service = await serve()
    document = await upload(service, title=title, text=text)

    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()

    assert expected in answer["response"]
    assert "[1]" in answer["response"]
    assert [source["document_id"] for source in answer["sources"]] == [document["document_id"]]
    assert (answer["status"], answer["model"], answer["estimated_cost"]) == (
        "completed",
        "extractive",
        "0",
    )
    assert answer["total_tokens"] == answer["prompt_tokens"] + answer["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("question", "refusal"),
    [
        ("量子コンピュータの発明者は誰ですか？", "見つかりません"),
        ("Who invented the quantum computer?", "could not find"),
    ],
)
async def test_off_topic_questions_are_refused_without_a_provider_call(
    serve: Serve, fake: ProviderFake, question: str, refusal: str
) -> None:
    """A refusal in the question's language, no provider call, no tokens, no cost, and a row."""
    service = await serve(openai_base_url=fake.base_url, model="m", seeded=True)

    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
    async with service.client.stream("GET", "/ai/stream", params={"prompt": question}) as response:
        events = await collect(response)

    assert refusal in answer["response"] == text_of(events)
    assert (
        answer["status"],
        answer["usage_source"],
        answer["total_tokens"],
        answer["estimated_cost"],
    ) == ("no_context", "none", 0, "0")
    assert events[0].json["context"] == answer["sources"] == []
    assert [row["status"] for row in await service.rows()] == ["no_context", "no_context"]
    assert fake.calls == []


async def test_the_prompt_has_rules_and_numbered_passages(
    service: Service, fake: ProviderFake
) -> None:
    """The provider receives rules, delimited passages and question; citations become sources."""
    document = await upload(service, title="図書館", text=JA)
    fake.next(Behaviour(text="一人10冊までです。[1] [9]"))

    answer = (
        await service.client.post("/ai/test", json={"prompt": "図書館の貸出は何冊までですか？"})
    ).json()

    system, user = (message["content"] for message in fake.calls[0].body["messages"])
    assert "[n]" in system or "[1]" in system
    assert "貸出は一人10冊まで" in user + system
    assert [source["n"] for source in answer["sources"]] == [1]
    assert answer["sources"][0]["document_id"] == document["document_id"]


async def test_start_has_the_context_and_done_the_cited_sources(serve: Serve) -> None:
    """`start` has the context given to the model; `sources` of `done` is the cited part."""
    service = await serve(seeded=True)
    async with service.client.stream(
        "GET", "/ai/stream", params={"prompt": "How many days do I have to return an item?"}
    ) as response:
        events = await collect(response)

    context, sources = events[0].json["context"], events[-1].json["sources"]
    assert [passage["n"] for passage in context] == list(range(1, len(context) + 1))
    assert sources
    assert {source["chunk_id"] for source in sources} <= {
        passage["chunk_id"] for passage in context
    }
    cited = sources[0]["text"][slice(*sources[0]["sentence"])]
    assert cited.split("**")[-1] in text_of(events)
    assert all(
        0 <= passage["sentence"][0] < passage["sentence"][1] <= len(passage["text"])
        for passage in context
    )


async def test_citations_without_a_passage_are_dropped_and_counted(
    service: Service, fake: ProviderFake
) -> None:
    """A citation without a passage adds no source and is counted in a metric."""
    await upload(service, title="図書館", text=JA)
    fake.next(Behaviour(text="一人10冊まで、期間は2週間です。[1] [7] [8]"))
    answer = (
        await service.client.post("/ai/test", json={"prompt": "図書館の貸出は何冊までですか？"})
    ).json()
    metrics = (await service.client.get("/metrics")).text

    (source,) = answer["sources"]
    assert source["text"][slice(*source["sentence"])] == "貸出は一人10冊まで、期間は2週間です。"
    assert 'kotae_citations_total{what="dropped"} 2.0' in metrics
    assert 'kotae_citations_total{what="real"} 1.0' in metrics


async def test_unsupported_citations_are_marked_counted_and_recorded(
    service: Service, fake: ProviderFake
) -> None:
    """A source whose claim has a number from elsewhere is marked in the answer and in its row."""
    await upload(service, title="図書館", text=JA)
    fake.next(Behaviour(text="一人10冊まで、期間は3週間です。[1]"))
    answer = (
        await service.client.post("/ai/test", json={"prompt": "図書館の貸出は何冊までですか？"})
    ).json()
    metrics = (await service.client.get("/metrics")).text
    row = (await service.client.get(f"/ai/answers/{answer['id']}")).json()

    assert [source["supported"] for source in answer["sources"]] == [False]
    assert row["sources"] == answer["sources"]
    assert 'kotae_citations_total{what="unsupported"} 1.0' in metrics


async def test_injections_reach_the_provider_as_data(serve: Serve, fake: ProviderFake) -> None:
    """Orders, forged parts, delimiters and images do not change the parts of the prompt."""
    service = await serve(
        openai_base_url=fake.base_url, model="m", context_chunks_max=50, context_tokens_max=100_000
    )
    texts = [
        f"灯台の高さは{n}メートルです。\n\n{injection}" for n, injection in enumerate(INJECTIONS)
    ]
    texts = [text.replace("\0", "0") for text in texts]
    for text in texts:
        await upload(service, title=text[:200], text=text)
    question = "灯台の高さは何メートルですか？"
    await service.client.post("/ai/test", json={"prompt": question})

    system, user = (message["content"] for message in fake.calls[0].body["messages"])
    assert system == GROUNDED_RULES
    parsed = parse_messages([Message("system", system), Message("user", user)])
    assert not isinstance(parsed, str)
    parsed_question, passages = parsed
    assert parsed_question == question
    assert [passage.n for passage in passages] == list(range(1, len(passages) + 1))
    assert len({passage.text.split("メートル")[0] for passage in passages}) >= 25
    for image in IMAGES:  # unchanged, as characters of a passage only
        assert [image in passage.text for passage in passages].count(True) == 1
        assert image not in system


async def test_a_deleted_document_is_never_used_again(serve: Serve) -> None:
    """After its deletion, a question that only this document answered is refused."""
    service = await serve()
    document = await upload(service, title="図書館", text=JA)
    question = {"prompt": "図書館の休館日はいつですか"}
    assert (await service.client.post("/ai/test", json=question)).json()["status"] == "completed"

    assert (
        await service.client.delete(f"/ai/documents/{document['document_id']}")
    ).status_code == 204

    assert (await service.client.post("/ai/test", json=question)).json()["status"] == "no_context"
    assert (await service.client.get(f"/ai/documents/{document['document_id']}")).status_code == 404


async def test_ungrounded_answers_have_no_context(service: Service, fake: ProviderFake) -> None:
    """`grounded: false` asks the model without context."""
    await upload(service, title="図書館", text=JA)
    answer = (
        await service.client.post(
            "/ai/test", json={"prompt": "図書館の休館日はいつですか", "grounded": False}
        )
    ).json()

    assert answer["sources"] == []
    assert JA[20:40] not in str(fake.calls[0].body["messages"])


async def test_search_returns_the_context_of_an_answer(serve: Serve) -> None:
    """GET /ai/search returns ranked chunks with scores and matched terms, and `answerable`."""
    service = await serve(seeded=True)
    results = (
        await service.client.get("/ai/search", params={"q": "返品は何日以内にできますか"})
    ).json()
    nothing = (
        await service.client.get("/ai/search", params={"q": "量子コンピュータの発明者"})
    ).json()

    assert results["answerable"] is True
    assert results["items"][0].keys() >= {
        "document_id",
        "chunk_id",
        "title",
        "text",
        "score",
        "coverage",
        "matched",
        "sentence",
    }
    assert [item["score"] for item in results["items"]] == sorted(
        (item["score"] for item in results["items"]), reverse=True
    )
    assert nothing["answerable"] is False


async def test_relevance_scores_are_recorded(serve: Serve) -> None:
    """Answer, refusal and search report the same two scores; ungrounded answers have none."""
    service = await serve(seeded=True)
    for question in ("返品は何日以内にできますか", "量子コンピュータの発明者は誰ですか"):
        answer = (await service.client.post("/ai/test", json={"prompt": question})).json()
        results = (await service.client.get("/ai/search", params={"q": question})).json()
        row = (await service.rows())[0]
        assert answer["relevance_share"] == row["relevance_share"] == results["share"]
        assert answer["relevance_terms"] == row["relevance_terms"] == results["terms"]
    free = (
        await service.client.post("/ai/test", json={"prompt": "Hello", "grounded": False})
    ).json()
    assert (free["relevance_share"], free["relevance_terms"]) == (None, None)


async def test_documents_restrict_a_search(serve: Serve) -> None:
    """With `documents` nothing else is searched; unknown ids find nothing."""
    service = await serve()
    ids = [
        (await upload(service, title=name, text=f"{name}の休館日は毎週{day}です。"))["document_id"]
        for name, day in (("図書館", "火曜日"), ("美術館", "水曜日"))
    ]
    question = "休館日はいつですか？"
    for n, day in enumerate(("火曜日", "水曜日")):
        answer = (
            await service.client.post("/ai/test", json={"prompt": question, "documents": [ids[n]]})
        ).json()
        results = (
            await service.client.get("/ai/search", params={"q": question, "documents": [ids[n]]})
        ).json()
        async with service.client.stream(
            "GET", "/ai/stream", params={"prompt": question, "documents": [ids[n]]}
        ) as response:
            streamed = text_of(await collect(response))
        assert day in answer["response"] == streamed
        assert {item["document_id"] for item in results["items"]} == {ids[n]}
    nothing = (
        await service.client.post("/ai/test", json={"prompt": question, "documents": ["unknown"]})
    ).json()
    assert nothing["status"] == "no_context"
