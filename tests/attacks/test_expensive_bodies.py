"""Bodies that are refused are cheap, regardless of size and content."""

import pytest

from tests.attacks.conftest import KEY
from tests.attacks.measure import attack
from tests.process import ServiceProcess

pytestmark = pytest.mark.slow

UPLOADS = {
    "unknown_fields": 422,
    "repeated_fields": 422,
    "nested_arrays": 422,
    "white_space": 422,
    "blank_text": 422,
    "text_of_escapes": 413,
    "oversized_body": 413,
    "form_of_fields": 400,
}
QUESTIONS = {
    "unknown_fields_of_a_question": 422,
    "unknown_limits": 422,
    "nested_objects_of_a_question": 422,
    "many_numbers": 422,
    "huge_number": 422,
}


@pytest.mark.parametrize(("program", "status"), (UPLOADS | QUESTIONS).items())
async def test_an_invalid_body_is_cheap(victim: ServiceProcess, program: str, status: int) -> None:
    """A caller who sends invalid bodies delays no other client and does not fill memory."""
    report = await attack(victim, program, key=KEY, known=True)

    report.check(megabytes_max=80)
    assert report.outcome.statuses == {status: report.outcome.opened}


@pytest.mark.parametrize("program", [*UPLOADS, *QUESTIONS])
async def test_a_stranger_sends_no_body(victim: ServiceProcess, program: str) -> None:
    """Without a credential the body is not read."""
    report = await attack(victim, program, key=KEY)

    report.check(megabytes_max=20)
    assert report.outcome.statuses.keys() <= {401, 413}
    assert report.outcome.statuses.total() == report.outcome.opened


async def test_small_chunks_are_cheap(victim: ServiceProcess) -> None:
    """A body in chunks of one byte ends with 422 once it is complete and delays no other client."""
    report = await attack(victim, "body_of_small_chunks", key=KEY, known=True)

    report.check(megabytes_max=40)
