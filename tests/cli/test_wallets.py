"""`kotae billing balance`, `entries`, `grant` and `assign`."""

import json

import pytest

from service.core.database.engine import Database
from tests.command import command, run


@pytest.fixture(autouse=True)
def _data_dir(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use the database of the test."""
    assert database.file
    monkeypatch.setenv("KOTAE_DATA_DIR", str(database.file.parent))


async def test_amounts_are_granted_and_listed() -> None:
    """A repeated key adds nothing; an adjustment may be negative."""
    assert "no entries" in await command("billing", "entries", "alice")
    for _ in range(2):
        printed = await command("billing", "grant", "alice", "5", "--note", "welcome", "--key", "k")
        assert "grant: $5 for alice" in printed
    printed = await command("billing", "grant", "alice", "-0.5", "--adjustment")
    assert "adjustment: -$0.5 for alice" in printed
    assert (await command("billing", "balance", "alice")).strip() == "$4.5"
    balance = await command("billing", "balance", "alice", "--json")
    assert json.loads(balance) == {"user_id": "alice", "balance": "4.5"}
    listed = (await command("billing", "entries", "alice", "--json")).splitlines()
    assert [json.loads(line)["amount"] for line in listed] == ["-0.5", "5"]
    printed = await command("billing", "entries", "alice")
    assert "welcome" in printed
    assert " -$0.5 " in printed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("grant", "alice", "x"), 2),
        (("grant", "alice", "0.0000000001"), 2),
        (("grant", "", "5"), 2),
        (("grant", "alice", "5", "--note", ""), 2),
        (("grant", "alice", "5", "--key", "a b"), 2),
        (("grant", "alice", "0"), 1),
        (("grant", "alice", "-5"), 1),
        (("entries", "alice", "--limit", "0"), 2),
        (("assign", "alice", "1"), 2),
    ],
)
async def test_wrong_arguments_change_nothing(arguments: tuple[str, ...], code: int) -> None:
    """They are refused with a reason."""
    assert (await run("billing", *arguments))[0] == code
    assert (await command("billing", "balance", "alice")).strip() == "$0"


async def test_a_payer_is_assigned() -> None:
    """Once; another customer is refused."""
    for _ in range(2):
        assert "assigned: alice" in await command("billing", "assign", "alice", "cus_1")
    assert (await run("billing", "assign", "alice", "cus_2"))[0] == 1
