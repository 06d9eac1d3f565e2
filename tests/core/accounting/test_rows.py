"""Rows of the log and the objects that are built from them."""

import msgspec
import pytest

from service.core.accounting import log as request_log
from service.core.accounting.log_pages import LogFilter, read_page
from service.core.accounting.rows import ANSWER_COLUMNS, build_row
from service.core.database.engine import Database
from service.core.database.tables import request_logs
from service.core.encoding import replace_surrogates
from service.core.errors import AnswerDamaged
from service.core.records import Answer, DamagedAnswer, Passage, Status, create_answer_object
from tests.damage import set_value
from tests.records import build_intent, build_outcome
from tests.rows import write


def test_a_row_has_every_column() -> None:
    """A row is complete; the database only assigns `seq`."""
    assert {*build_row(build_outcome()), "seq"} == {column.name for column in request_logs.c}


def test_a_damaged_answer_has_the_fields_of_an_answer() -> None:
    """Both shapes have the same fields in the same order, and one more."""
    assert DamagedAnswer.__struct_fields__ == (*Answer.__struct_fields__, "damaged")
    assert {column.name for column in ANSWER_COLUMNS} - {
        *("seq", "cost_nano_usd", "charge_nano_usd")
    } == {*Answer.__struct_fields__} - {"total_tokens", "estimated_cost", "charge", "attempt_list"}


async def test_a_row_becomes_the_answer_object(database: Database) -> None:
    """What was written is read, and has the same form as the response of the answer."""
    sources = [Passage(1, "d", "d.1", "題", "text", (0, 4))]
    outcome = build_outcome(build_intent(grounded=True, relevance_share=0.5), sources=sources)
    await write(database, [outcome])
    async with database.read_session() as session:
        row = await request_log.read_row(session, outcome.intent.id, user_id=None)
        again = await request_log.find_outcome(session, outcome.intent.id)

    assert row == create_answer_object(outcome)
    assert again == outcome


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("prompt = CAST(x'61ff62' AS TEXT)", {"prompt": "a\ufffdb"}),
        ("user_id = CAST(x'61ff62' AS TEXT)", {"user_id": "a\ufffdb"}),
        ("completion_tokens = 'x'", {"completion_tokens": None, "total_tokens": None}),
        ("cost_nano_usd = 'x'", {"estimated_cost": None}),
        ("sources = '{}'", {"sources": None}),
        ("grounded = 2", {"grounded": None}),
    ],
)
async def test_only_the_damaged_fields_are_missing(
    database: Database, assignment: str, expected: dict[str, object]
) -> None:
    """The other fields of a damaged row keep their values."""
    outcome = build_outcome()
    await write(database, [outcome])
    assert database.file
    set_value(database.file, outcome.intent.id, assignment)
    async with database.read_session() as session:
        (row,) = (await read_page(session, LogFilter(), limit=10)).items

    intact = msgspec.structs.asdict(create_answer_object(outcome))
    assert msgspec.structs.asdict(row) == intact | expected | {"damaged": [*expected]}


@pytest.mark.parametrize("stored", ["x", "[{}]", b"[\xff]"])
async def test_a_damaged_passage_list_of_a_refusal_is_marked(
    database: Database, stored: str | bytes
) -> None:
    """`nearest` is read with a single row only, and lists do not depend on it."""
    nearest = [Passage(1, "d", "d.1", "t", "text")]
    outcome = build_outcome(status=Status.NO_CONTEXT, nearest=nearest)
    await write(database, [outcome])
    assert database.file
    set_value(database.file, outcome.intent.id, "nearest = CAST(? AS TEXT)", stored)
    async with database.read_session() as session:
        (listed,) = (await read_page(session, LogFilter(), limit=10)).items
        row = await request_log.read_row(session, outcome.intent.id, user_id=None)

    assert isinstance(listed, Answer)
    assert isinstance(row, DamagedAnswer)
    assert (row.damaged, row.prompt) == (["nearest"], "Why?")


async def test_the_outcome_of_a_damaged_row_is_an_error(database: Database) -> None:
    """An outcome is complete or not available."""
    outcome = build_outcome()
    await write(database, [outcome])
    assert database.file
    set_value(database.file, outcome.intent.id, "response_time_ms = 'x'")
    with pytest.raises(AnswerDamaged):
        async with database.read_session() as session:
            await request_log.find_outcome(session, outcome.intent.id)

    assert database.damaged_rows == 1


async def test_names_of_damaged_rows_can_be_encoded(database: Database) -> None:
    """An undecodable id becomes a text without surrogates."""
    outcome = build_outcome()
    await write(database, [outcome])
    assert database.file
    set_value(database.file, outcome.intent.id, "id = CAST(x'61ff62' AS TEXT)")
    async with database.read_session() as session:
        (row,) = (await read_page(session, LogFilter(), limit=10)).items

    assert row.id == replace_surrogates(row.id) == "a\ufffdb"
