"""`kotae ask` and `kotae logs` with a credential."""

from pathlib import Path

import pytest

from tests.process import kotae, migrate, serving

pytestmark = pytest.mark.slow


async def test_the_command_line_of_somebody_with_a_key(tmp_path: Path) -> None:
    """`kotae ask` and `kotae logs` send KOTAE_API_KEY; without a credential they end with one line."""
    await migrate(tmp_path)
    _, made, _ = await kotae("keys", "create", "--user", "alice", data_dir=tmp_path)
    key = made.split()[0]
    async with serving(tmp_path, KOTAE_AUTH="keys") as service:
        refused = await kotae("ask", "Why?", "--url", service.url, data_dir=tmp_path)
        asked = await kotae(
            "ask", "Why?", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key
        )
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key)

    assert (
        refused[0],
        "credential" in refused[2] or "API key" in refused[2],
        refused[2].count("\n"),
    ) == (2, True, 1), refused
    assert asked[0] == 0, asked
    assert "no_context" in log
    assert key not in asked[1] + asked[2] + log
