"""The audit log and the changes it is about survive kill -9 together."""

import asyncio
import signal
import sqlite3
from pathlib import Path

import httpx2
import pytest

from tests.process import ServiceProcess, serving

pytestmark = pytest.mark.slow

KILLS = 6


async def change_until_killed(service: ServiceProcess, worker: int) -> None:
    """Create keys, and disable and enable a user, until the service is gone."""
    n = 0
    while True:
        n += 1
        await service.client.post("/ai/keys", json={"user_id": f"u{worker}"})
        await service.client.put(f"/ai/users/d{worker}", json={"disabled": n % 2 == 1})


async def test_no_change_without_an_entry_and_no_entry_without_a_change(tmp_path: Path) -> None:
    """After each kill, keys equal entries, and the last entry of a user is the user's state."""
    for kill in range(KILLS):
        async with serving(tmp_path) as service:
            changes = [asyncio.create_task(change_until_killed(service, n)) for n in range(4)]
            reached = await service.client.get("/ai/keys")
            for _ in range(kill * 7):  # the kill is at another point of the requests each time
                reached = await service.client.get("/ai/keys")
            assert reached.status_code == 200
            service.signal(signal.SIGKILL)
            await service.wait()
            results = await asyncio.gather(*changes, return_exceptions=True)
        assert all(isinstance(result, httpx2.TransportError) for result in results), results

    database = sqlite3.connect(tmp_path / "kotae.db")
    keys = {id_ for (id_,) in database.execute("SELECT id FROM api_keys")}
    entries = [
        id_
        for (id_,) in database.execute(
            "SELECT target_id FROM audit_log WHERE action = 'key.created'"
        )
    ]
    disabled = dict(database.execute("SELECT id, disabled FROM users WHERE id LIKE 'd%'"))
    actions = dict(
        database.execute(
            "SELECT user_id, action FROM audit_log WHERE user_id LIKE 'd%' ORDER BY rowid"
        )
    )
    assert sorted(keys) == sorted(entries)
    assert keys
    assert disabled == {user: action == "user.disabled" for user, action in actions.items()}
