"""`kotae budgets`."""

import json

import pytest

from service.core.budgets.outbox import create_alerts
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import BudgetExists, NotFound
from tests.command import command, run
from tests.records import build_outcome
from tests.rows import write
from tests.wallets import add_funds


@pytest.fixture(autouse=True)
def _data_dir(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use the database of the test."""
    assert database.file
    monkeypatch.setenv("KOTAE_DATA_DIR", str(database.file.parent))


async def test_budgets_are_created_listed_changed_and_deleted() -> None:
    """The commands do what the routes do, with a table and with JSON."""
    assert "kotae budgets create" in await command("budgets", "list")
    create = ("budgets", "create", "b", "--subject", "user:a", "--amount", "0.5", "--per", "day")
    assert "created: b" in await command(*create, "--threshold", "80")
    listed = await command("budgets", "list")
    assert listed.split("\n")[0].split() == [
        "BUDGET", "SUBJECT", "PERIOD", "AMOUNT", "SPENT", "USED", "UNPRICED", "ACTION",
    ]  # fmt: skip
    assert listed.split("\n")[1].split() == [
        "b", "user:a", "day", "$0.5", "$0", "0", "%", "0", "alert",
    ]  # fmt: skip
    await command("budgets", "set", "b", "--amount", "2", "--action", "refuse")
    budget = json.loads(await command("budgets", "show", "b", "--json"))
    assert (budget["amount_usd"], budget["action"]) == ("2", "refuse")
    assert budget["thresholds"] == [80]
    assert "deleted: b" in await command("budgets", "delete", "b")
    assert await command("budgets", "list", "--json") == ""


async def test_alerts_are_listed(database: Database) -> None:
    """Alerts have their threshold and the state of their delivery."""
    assert "no alerts" in await command("budgets", "alerts")
    await command("budgets", "create", "b", "--amount", "0.000001")
    await write(database, [build_outcome()])
    (alert, *_) = await create_alerts(database, utc_now(), deliver=True)
    assert "50 %" in await command("budgets", "show", "b")
    lines = (await command("budgets", "alerts", "--state", "pending", "--json")).splitlines()
    assert {json.loads(line)["threshold"] for line in lines} == {50, 80, 100}
    assert f"pending: {alert.id}" in await command("budgets", "retry", alert.id)


async def test_alerts_about_credit_name_the_user(database: Database) -> None:
    """They have no budget and no threshold."""
    await add_funds(database, 1)
    await create_alerts(database, utc_now(), deliver=True, credit_nano_usd=2)
    assert "credit of alice" in await command("budgets", "alerts")


@pytest.mark.parametrize(
    "arguments",
    [("show", "b"), ("set", "b", "--amount", "1"), ("delete", "b"), ("retry", "b")],
)
async def test_unknown_names_fail(arguments: tuple[str, ...]) -> None:
    """A budget or alert that does not exist is an error."""
    with pytest.raises(NotFound):
        await command("budgets", *arguments)


async def test_a_name_is_used_once() -> None:
    """A second budget with a name is an error."""
    await command("budgets", "create", "b", "--amount", "1")
    with pytest.raises(BudgetExists):
        await command("budgets", "create", "b", "--amount", "1")


@pytest.mark.parametrize(
    "wrong",
    [
        ("a b", "--amount", "1"),
        ("b", "--amount", "many"),
        ("b", "--amount", "0"),
        ("b", "--amount", "nan"),
        ("b", "--amount", "0.0000000001"),
        ("b", "--amount", "2000000"),
        ("b", "--amount", "1", "--subject", "team:a"),
        ("b", "--amount", "1", "--per", "week"),
        ("b", "--amount", "1", "--threshold", "0"),
        ("b", "--amount", "1", *[f"--threshold={n}" for n in range(1, 12)]),
    ],
)
async def test_wrong_arguments_are_usage_errors(wrong: tuple[str, ...]) -> None:
    """Arguments that are no budget are refused with status 2."""
    status, _ = await run("budgets", "create", *wrong)
    assert status == 2
