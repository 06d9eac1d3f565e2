"""`kotae budgets`: amounts per day or month, and their alerts."""

import re
from decimal import Decimal
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.output import Json, format_time, print_json, print_table
from service.core.auth.principals import COMMAND_LINE
from service.core.budgets import outbox, store
from service.core.budgets.budget import (
    AMOUNT_USD_MAX,
    NAME_PATTERN,
    SUBJECT_PATTERN,
    THRESHOLD_MAX,
    THRESHOLDS,
    THRESHOLDS_MAX,
    Budget,
    BudgetAction,
    Period,
)
from service.core.budgets.outbox import Alert, AlertState
from service.core.budgets.spend import BudgetObject, describe_budgets
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.pricing import to_nano_usd
from service.core.settings import load_settings

budgets = typer.Typer(
    help="Budgets: amounts per day or month, with alerts or refusals.", no_args_is_help=True
)
Threshold = Annotated[
    list[int],
    typer.Option(
        "--threshold",
        min=1,
        max=THRESHOLD_MAX,
        help="A percentage of the amount that causes an alert; repeatable.",
    ),
]
_HEADERS = ("BUDGET", "SUBJECT", "PERIOD", "AMOUNT", "SPENT", "USED", "UNPRICED", "ACTION")
_RIGHT = ("AMOUNT", "SPENT", "USED", "UNPRICED")


@budgets.command("list")
def list_budgets(as_json: Json = False) -> None:
    """List budgets with the spend of their current windows."""

    async def read(database: Database) -> list[BudgetObject]:
        async with database.read_session() as session:
            return await describe_budgets(session, await store.list_budgets(session), utc_now())

    _print_budgets(run_on_database(load_settings(), read), as_json=as_json)


@budgets.command("show")
def show_budget(name: str, as_json: Json = False) -> None:
    """Print a budget and its alerts."""

    async def read(database: Database) -> tuple[list[BudgetObject], list[Alert]]:
        async with database.read_session() as session:
            budget = await store.find_by_name(session, name)
            described = await describe_budgets(session, [budget], utc_now())
            return described, await outbox.list_alerts(session, budget_id=budget.id)

    described, alerts = run_on_database(load_settings(), read)
    _print_budgets(described, as_json=as_json)
    if not as_json:
        print()
        _print_alerts(alerts, as_json=False)


@budgets.command("create")
def create_budget(
    name: str,
    amount: Annotated[str, typer.Option(metavar="USD", help="The amount per window.")],
    per: Annotated[Period, typer.Option(help="The window, in UTC.")] = Period.MONTH,
    subject: Annotated[
        str, typer.Option(help="user:ID, key:ID, plan:NAME, model:NAME or all.")
    ] = "all",
    threshold: Threshold = list(THRESHOLDS),  # noqa: B006 - not modified
    action: Annotated[
        BudgetAction, typer.Option(help="What happens beyond it.")
    ] = BudgetAction.ALERT,
) -> None:
    """Create a budget."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(f"{name!r} is not a name: use letters, digits, '.', '_' and '-'")
    if not re.fullmatch(SUBJECT_PATTERN, subject):
        raise typer.BadParameter(
            f"{subject!r} is none of user:ID, key:ID, plan:NAME, model:NAME, all"
        )
    new_budget = store.NewBudget(
        name=name,
        subject=subject,
        amount_nano_usd=_parse_amount(amount),
        period=per,
        thresholds=_check_thresholds(threshold),
        action=action,
    )
    run_on_database(
        load_settings(),
        lambda database: store.create_budget(database, COMMAND_LINE, new_budget),
    )
    print(f"created: {name}")


@budgets.command("set")
def set_budget(
    name: str,
    amount: Annotated[
        str | None, typer.Option(metavar="USD", help="The amount per window.")
    ] = None,
    threshold: Threshold = [],  # noqa: B006 - not modified
    action: Annotated[BudgetAction | None, typer.Option(help="What happens beyond it.")] = None,
) -> None:
    """Change a budget. Options that are not given do not change."""

    async def change(database: Database) -> Budget:
        return await store.change_budget(
            database,
            COMMAND_LINE,
            await _find_id(database, name),
            amount_nano_usd=None if amount is None else _parse_amount(amount),
            thresholds=_check_thresholds(threshold) or None,
            action=action,
        )

    run_on_database(load_settings(), change)
    print(f"changed: {name}")


@budgets.command("delete")
def delete_budget(name: str) -> None:
    """Delete a budget. Its alerts stay."""

    async def delete(database: Database) -> None:
        await store.delete_budget(database, COMMAND_LINE, await _find_id(database, name))

    run_on_database(load_settings(), delete)
    print(f"deleted: {name}")


@budgets.command("alerts")
def list_alerts(
    state: Annotated[AlertState | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List the latest alerts and their delivery."""

    async def read(database: Database) -> list[Alert]:
        async with database.read_session() as session:
            return await outbox.list_alerts(session, state=state)

    _print_alerts(run_on_database(load_settings(), read), as_json=as_json)


@budgets.command("retry")
def retry_alert(alert_id: str) -> None:
    """Deliver an alert again that was given up or waits for its next attempt."""
    run_on_database(
        load_settings(), lambda database: outbox.retry_alert(database, alert_id, utc_now())
    )
    print(f"pending: {alert_id}")


async def _find_id(database: Database, name: str) -> str:
    """The id of a budget. Raises `NotFound`."""
    async with database.read_session() as session:
        return (await store.find_by_name(session, name)).id


def _parse_amount(text: str) -> int:
    """An amount in nano-dollars. Raises `typer.BadParameter`."""
    try:
        amount = Decimal(text)
        if not 0 < amount <= AMOUNT_USD_MAX:
            raise typer.BadParameter(f"{text!r} is not between 0 and {AMOUNT_USD_MAX} USD")
    except ArithmeticError as error:
        raise typer.BadParameter(f"{text!r} is not a number") from error
    if nano_usd := to_nano_usd(amount):
        return nano_usd
    raise typer.BadParameter(f"{text!r} is less than a nano-dollar")


def _check_thresholds(thresholds: list[int]) -> list[int]:
    if len(set(thresholds)) > THRESHOLDS_MAX:
        raise typer.BadParameter(f"there are more than {THRESHOLDS_MAX} thresholds")
    return thresholds


def _print_budgets(listed: list[BudgetObject], *, as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    print_table(
        _HEADERS,
        (
            (
                budget.name,
                budget.subject,
                budget.period,
                f"${budget.amount_usd}",
                f"${budget.current.spent_usd}",
                f"{budget.current.percent} %",
                budget.current.unpriced,
                budget.action,
            )
            for budget in listed
        ),
        right=_RIGHT,
        empty="no budgets yet: kotae budgets create NAME --amount USD",
    )


def _print_alerts(alerts: list[Alert], *, as_json: bool) -> None:
    if as_json:
        print_json(alert.to_wire() for alert in alerts)
        return
    print_table(
        ("ALERT", "CREATED", "BUDGET", "WINDOW", "THRESHOLD", "STATE", "ATTEMPTS", "ERROR"),
        (
            (
                alert.id,
                format_time(alert.created_at),
                _name_subject(alert),
                f"{alert.window_start:%Y-%m-%d}",
                f"{alert.threshold} %" if alert.threshold else "",
                alert.state,
                alert.attempts,
                alert.error,
            )
            for alert in alerts
        ),
        right=("THRESHOLD", "ATTEMPTS"),
        empty="no alerts",
    )


def _name_subject(alert: Alert) -> str:
    """The budget of an alert, or the user whose credit is low."""
    data = alert.to_wire()["event"]["data"]
    return str(data["budget"] if "budget" in data else f"credit of {data['user_id']}")
