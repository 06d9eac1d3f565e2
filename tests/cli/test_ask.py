"""`kotae ask` and `kotae logs` with a credential."""

from pathlib import Path

import pytest

from tests.process import kotae, migrate, serving

pytestmark = pytest.mark.slow


async def test_commands_send_the_api_key(tmp_path: Path) -> None:
    """`kotae ask` and `kotae logs` send KOTAE_API_KEY; without it, they print one line and fail."""
    await migrate(tmp_path)
    _, created, _ = await kotae("keys", "create", "--user", "alice", data_dir=tmp_path)
    key = created.split()[0]
    async with serving(tmp_path, KOTAE_AUTH="keys") as service:
        refused = await kotae("ask", "Why?", "--url", service.url, data_dir=tmp_path)
        answered = await kotae(
            "ask", "Why?", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key
        )
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key)

    assert (
        refused[0],
        "credential" in refused[2] or "API key" in refused[2],
        refused[2].count("\n"),
    ) == (2, True, 1), refused
    assert answered[0] == 0, answered
    assert "no_context" in log
    assert key not in answered[1] + answered[2] + log
