"""`kotae users` and `kotae plans`."""

import json

import pytest

from service.core.errors import NotFound
from tests.command import command
from tests.conftest import Serve
from tests.fakes.provider import ProviderFake

ASK = {"prompt": "Why?", "grounded": False, "max_tokens": 100}


async def test_quotas_on_the_command_line(
    serve: Serve, fake: ProviderFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kotae plans`, `kotae users quota` and `kotae users usage` are equivalent to the routes."""
    service = await serve(openai_base_url=fake.base_url, model="m")
    monkeypatch.setenv("KOTAE_DATA_DIR", str(service.services.settings.data_dir))
    await command(
        "plans",
        "set",
        "team",
        "--limit",
        "tokens_per_day=1000",
        "--limit",
        "cost_usd_per_month=2.50",
    )
    await command("users", "quota", "alice", "--plan", "team")
    quota = (await service.client.get("/ai/users/alice/quota")).json()
    await service.client.post("/ai/test", json=ASK | {"user_id": "bob"})
    await service.wait_idle()

    assert quota["in_force"] == {"tokens_per_day": 1000, "cost_usd_per_month": "2.5"}
    assert "team  tokens_per_day=1000 cost_usd_per_month=2.5" in await command("plans", "list")
    (usage,) = (await command("users", "usage", "bob", "--json")).splitlines()
    assert json.loads(usage)["answers"] == 1
    assert "no answers in the last 30 days" in await command("users", "usage", "alice")
    with pytest.raises(NotFound):
        await command("users", "usage", "nobody")
    assert "alice: concurrent=2" in await command(
        "users", "quota", "alice", "--limit", "concurrent=2"
    )
    for wrong in (
        "tokens=5",
        "tokens_per_day=many",
        "cost_usd_per_day=x",
        "concurrent=-1",
        "concurrent",
    ):
        with pytest.raises(SystemExit):
            await command("users", "quota", "alice", "--limit", wrong)
    terms = "concurrent=1 prepaid markup=1.25"
    options = ("--limit", "concurrent=1", "--prepaid", "--markup", "1.250")
    assert f"team: {terms}" in await command("plans", "set", "team", *options)
    (plan,) = (await command("plans", "list", "--json")).splitlines()
    assert json.loads(plan)["markup"] == "1.25"
    assert "prepaid markup=1.25" in await command("plans", "list")
    for markup in ("0", "1001", "1.0000001", "nan", "x"):
        with pytest.raises(SystemExit):
            await command("plans", "set", "team", "--markup", markup)
    await command("plans", "delete", "team")
    with pytest.raises(NotFound):
        await command("users", "quota", "alice", "--plan", "team")
