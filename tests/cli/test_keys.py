"""`kotae keys`."""

import asyncio

import httpx2
import pytest

from service.core.errors import NotFound
from tests.access import client
from tests.command import command
from tests.conftest import Serve


@pytest.mark.slow
async def test_keys_on_the_command_line(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running service applies changes of `kotae keys` and `kotae users disable`."""
    service = await serve(auth="keys")
    monkeypatch.setenv("KOTAE_DATA_DIR", str(service.services.settings.data_dir))
    created = await command(
        "keys", "create", "--user", "alice", "--scopes", "logs", "--expires", "1"
    )
    key, key_id = created.split()[0], created.splitlines()[1].split()[0]
    async with client(service, key) as alice:
        assert (await alice.get("/ai/logs")).status_code == 200
        assert (await alice.get("/ai/keys")).status_code == 403
        listed = await command("keys", "list")
        rotated = (await command("keys", "rotate", key_id)).split()[0]
        async with client(service, rotated) as renewed:
            assert (await renewed.get("/ai/logs")).status_code == 200
            await command("keys", "revoke", key_id)
            await refused(alice)
            await command("users", "disable", "alice")
            await refused(renewed)
    assert "alice  disabled" in await command("users", "list")
    with pytest.raises(NotFound):
        await command("keys", "revoke", "nothing")

    assert key not in listed
    assert f"{key_id}  {key[:10]}…  alice  user  logs    valid" in listed


async def refused(caller: httpx2.AsyncClient) -> None:
    """Wait until a credential is refused, for up to five seconds."""
    async with asyncio.timeout(5):
        while (await caller.get("/ai/logs")).status_code == 200:
            await asyncio.sleep(0.1)
