"""`kotae audit-log`: what commands and routes have changed."""

import json

import pytest

from tests.command import command
from tests.conftest import Serve


async def test_commands_are_recorded_and_listed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor of a command is `cli`; the newest entry is the last line."""
    service = await serve()
    monkeypatch.setenv("KOTAE_DATA_DIR", str(service.services.settings.data_dir))
    created = (await command("keys", "create", "--user", "bob")).split()[1]
    await command("plans", "set", "team", "--limit", "concurrent=2")
    await command("users", "quota", "bob", "--plan", "team")
    await command("keys", "revoke", created)
    await command("plans", "delete", "team")
    table = await command("audit-log", "--url", service.url)
    (line,) = (
        await command("audit-log", "--url", service.url, "--json", "--action", "key.revoked")
    ).splitlines()
    entry = json.loads(line)

    assert [line.split()[1:4] for line in table.splitlines()[1:]] == [
        ["cli", "cli", action]
        for action in (
            "key.created",
            "plan.changed",
            "user.limited",
            "key.revoked",
            "plan.deleted",
        )
    ]
    assert (entry["user_id"], entry["target_id"]) == ("bob", created)
    assert entry["request_id"] is None
    assert "no entries match" in await command(
        "audit-log", "--url", service.url, "--user", "nobody"
    )
