"""JSON bodies: what is accepted, what is refused, and how errors are listed."""

import json
from typing import Any

import httpx2
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from service.api.json_bodies import (
    EXPLAINED_BYTES_MAX,
    THREAD_BYTES_MIN,
    decode_json,
    validate_json,
)
from service.api.problems import ERRORS_MAX
from service.api.schemas import (
    AskBody,
    KeyBody,
    LimitsBody,
    QuotaBody,
    RotateBody,
    TextBody,
    UserBody,
)
from service.core.limits import ServiceLimits
from tests.conftest import Serve, Service
from tests.problems import is_problem

MODELS = [AskBody, KeyBody, LimitsBody, QuotaBody, RotateBody, TextBody, UserBody]
PAD = " " * EXPLAINED_BYTES_MAX
VALUES = (
    st.none()
    | st.booleans()
    | st.text(max_size=5)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.lists(st.text(max_size=3))
)


def errors_of(raw: bytes, model: type[BaseModel]) -> list[str]:
    """The messages about a body."""
    with pytest.raises(RequestValidationError) as refusal:
        decode_json(raw, model)
    return [item["msg"] for item in refusal.value.errors()]


@pytest.mark.parametrize("model", MODELS)
def test_examples_have_the_right_shape(model: type[BaseModel]) -> None:
    """Every documented example of a body is accepted."""
    for example in model.model_json_schema().get("examples", []):
        decode_json(json.dumps(example).encode(), model)


@given(st.dictionaries(st.sampled_from([*AskBody.model_fields, "other"]), VALUES))
def test_a_question_is_validated_as_by_the_model(members: dict[str, Any]) -> None:
    """Reading a body accepts exactly what the model accepts, with the same result."""
    raw = json.dumps(members).encode()
    try:
        expected = AskBody.model_validate(json.loads(raw))
    except ValidationError:
        with pytest.raises(RequestValidationError):
            validate_json(raw, AskBody)
    else:
        assert validate_json(raw, AskBody) == expected


def test_a_lone_surrogate_is_replaced() -> None:
    """What JavaScript writes for half a character is read.

    Escaped backslashes and pairs stay what they are.
    """
    raw = rb'{"prompt":"\ud83d \ud83d\ude00 \\ud83d \ude00"}'

    assert validate_json(raw, AskBody).prompt == "\ufffd 😀 \\ud83d \ufffd"


def test_a_byte_order_mark_is_ignored() -> None:
    """A body may begin with a byte order mark."""
    assert validate_json(b'\xef\xbb\xbf{"prompt":"a"}', AskBody).prompt == "a"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b'{"prompt":"a"' + PAD.encode() + b',"other":1,"another":1}',
            "Object contains unknown field `other`",
        ),
        (b'{"prompt":' + PAD.encode() + b"[1]}", "got `array`"),
        (b'{"prompt":' + b'{"a":' * 100_000, "got `object`"),
        (b'{"prompt":"a"' + PAD.encode(), "truncated"),
        (b'{"prompt":"\xff' + PAD.encode() + b'"}', "utf-8"),
        ("{}".encode("utf-16"), "malformed"),
        (b'{"prompt":"a","temperature":NaN}' + PAD.encode(), "malformed"),
    ],
    ids=["unknown", "array", "nested", "truncated", "not UTF-8", "UTF-16", "NaN"],
)
def test_of_a_large_body_the_first_error_is_reported(raw: bytes, message: str) -> None:
    """One error is found without looking at the rest."""
    (found,) = errors_of(raw, AskBody)

    assert message in found


async def test_errors_are_listed_up_to_a_limit(service: Service) -> None:
    """A small body has all its errors listed, fifty at most.

    The problem says how many more there are.
    """
    body = {f"a{number}": 1 for number in range(100)}
    problem = is_problem(await service.client.post("/ai/test", json=body), 422, "invalid_request")

    assert len(problem["errors"]) == ERRORS_MAX
    assert problem["errors_omitted"] == 100 - ERRORS_MAX


async def test_long_names_are_cut(service: Service) -> None:
    """The name of an unknown field is not repeated in full."""
    response = await service.client.post("/ai/test", json={"a" * 2000: 1})

    assert len(response.content) < 1500


@pytest.mark.parametrize("path", ["/ai/test", "/ai/keys", "/ai/upload"])
async def test_another_content_type_is_explained(service: Service, path: str) -> None:
    """A body without the content type of JSON is refused with the header to send."""
    problem = is_problem(
        await service.client.post(path, content=b'{"prompt":"a"}'), 422, "invalid_request"
    )

    assert "application/json" in problem["detail"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"],
)
async def test_variants_of_the_content_type_are_accepted(
    service: Service, content_type: str
) -> None:
    """Parameters, case and a structured suffix do not matter."""
    body = json.dumps({"prompt": "a", "grounded": False})
    response = await service.client.post(
        "/ai/test", content=body, headers={"Content-Type": content_type}
    )

    assert response.status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}], ids=["none", "text"])
async def test_a_wrong_content_type_is_explained(service: Service, headers: dict[str, str]) -> None:
    """The problem names the header that is required."""
    response = await service.client.post("/ai/test", content=b'{"prompt":"a"}', headers=headers)
    problem = is_problem(response, 422, "invalid_request")

    assert "Content-Type: application/json" in problem["detail"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "body: the body is empty; a JSON object is required"),
        (b"[1]", "body: must be a JSON object"),
        (b'{"prompt":"a"', "body: JSON is malformed: it ends early (truncated)"),
        (b"{'prompt':1}", "body: JSON is malformed: object keys must be strings (byte 1)"),
    ],
    ids=["empty", "array", "truncated", "quotes"],
)
async def test_malformed_json_is_explained(service: Service, raw: bytes, message: str) -> None:
    """The problem says what is wrong with the JSON, and where."""
    headers = {"Content-Type": "application/json"}
    response = await service.client.post("/ai/test", content=raw, headers=headers)

    assert is_problem(response, 422, "invalid_request")["detail"] == message


async def upload(service: Service, text: str, **members: Any) -> httpx2.Response:
    """Upload a text as JSON in which every character is escaped that can be."""
    return await service.client.post(
        "/ai/upload",
        content=json.dumps({"text": text, **members}),
        headers={"Content-Type": "application/json"},
    )


@pytest.mark.parametrize("repetitions", [10, THREAD_BYTES_MIN])
async def test_a_text_is_what_was_uploaded(service: Service, repetitions: int) -> None:
    """A small and a large text are stored as they are, with their title."""
    text = 'Line "one".\n二行目 😀\n' * (repetitions // 10)
    document = (await upload(service, text, title="A title")).json()
    stored = (await service.client.get(f"/ai/documents/{document['document_id']}")).json()

    assert (stored["text"], stored["title"]) == (text, "A title")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"text":"%b","other":1}' % (b"a" * THREAD_BYTES_MIN), "body"),
        (b'{"text":"%b"}' % (b" " * THREAD_BYTES_MIN), "body.text"),
        (b'{"title":"%b"}' % (b"a" * THREAD_BYTES_MIN), "body.text"),
        (b'{"text":"%b","title":1}' % (b"a" * THREAD_BYTES_MIN), "body.title"),
    ],
    ids=["unknown", "blank", "missing", "not a string"],
)
async def test_a_large_text_is_validated(service: Service, body: bytes, where: str) -> None:
    """A large body is validated by the same rules as a small one."""
    response = await service.client.post(
        "/ai/upload", content=body, headers={"Content-Type": "application/json"}
    )
    problem = is_problem(response, 422, "invalid_request")

    assert where in [error["where"] for error in problem["errors"]]


async def test_bodies_in_progress_are_bounded(serve: Serve) -> None:
    """A body that arrives in parts is rejected when too many bytes of bodies are in progress."""
    service = await serve()
    body = json.dumps({"prompt": "Why?", "grounded": False}) + " " * 300_000
    headers = {"Content-Type": "application/json"}
    with service.services.body_budget.begin_body("local") as add_bytes:
        add_bytes(ServiceLimits().bodies_bytes_max - 200_000)
        refused = await service.client.post("/ai/test", content=body, headers=headers)
        small = await service.client.post("/ai/test", json={"prompt": "Why?", "grounded": False})

    is_problem(refused, 503, "overloaded")
    assert small.status_code == 200
    assert service.services.body_budget.bytes_in_progress == 0
