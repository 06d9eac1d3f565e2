"""`kotae billing balance`, `entries`, `grant` and `assign`: wallets and who pays for them."""

import re
from decimal import Decimal
from typing import Annotated

import typer

from service.cli.database import run_on_database
from service.cli.output import Json, format_dollars, format_time, print_json, print_table
from service.core.auth.principals import COMMAND_LINE
from service.core.billing import accounts, payers
from service.core.billing.accounts import EntryPage
from service.core.billing.customers import STRIPE_ID_PATTERN
from service.core.billing.ledger import NOTE_CHARACTERS_MAX, EntryKind, read_balance
from service.core.database.engine import Database
from service.core.encoding import create_id, utc_now
from service.core.pricing import format_usd
from service.core.settings import load_settings

_AMOUNT = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,9})?")
_KEY = re.compile(r"[!-~]{1,255}")
_ENTRIES_MAX = 1000


def show_balance(user_id: str, as_json: Json = False) -> None:
    """Print the balance of a user's wallet."""

    async def read(database: Database) -> int:
        async with database.read_session() as session:
            return await read_balance(session, user_id)

    balance = format_usd(run_on_database(load_settings(), read))
    if as_json:
        print_json([{"user_id": user_id, "balance": balance}])
    else:
        print(format_dollars(balance))


def list_entries(
    user_id: str,
    limit: Annotated[int, typer.Option(min=1, max=_ENTRIES_MAX, help="The latest ones.")] = 50,
    as_json: Json = False,
) -> None:
    """List the entries of a user's wallet, newest first."""

    async def read(database: Database) -> EntryPage:
        async with database.read_session() as session:
            return await accounts.read_entries(session, user_id, cursor=None, limit=limit)

    page = run_on_database(load_settings(), read)
    if as_json:
        print_json(page.items)
        return
    print_table(
        ("TIME", "KIND", "AMOUNT", "CAUSE", "NOTE"),
        (
            (
                format_time(entry.created_at),
                entry.kind,
                format_dollars(entry.amount),
                entry.cause,
                entry.note,
            )
            for entry in page.items
        ),
        right=("AMOUNT",),
        empty="no entries yet",
    )


def _refuse_option(value: str) -> str:
    """Amounts may begin with a hyphen, so unknown options are taken for arguments."""
    if value.startswith("--"):
        raise typer.BadParameter(f"no such option: {value}")
    return value


def add_grant(
    user_id: Annotated[str, typer.Argument(callback=_refuse_option)],
    amount: Annotated[
        str,
        typer.Argument(callback=_refuse_option, help="In USD; negative only with --adjustment."),
    ],
    note: Annotated[str | None, typer.Option(help="Shown to the user.")] = None,
    adjustment: Annotated[
        bool, typer.Option("--adjustment", help="A correction, which may be negative.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="A repeated command with this key adds nothing.")
    ] = None,
) -> None:
    """Add an amount to a user's wallet."""
    if not 0 < len(user_id) <= 200 or "\0" in user_id:
        raise typer.BadParameter("a user id has 1 to 200 characters")
    if note is not None and not 0 < len(note) <= NOTE_CHARACTERS_MAX:
        raise typer.BadParameter(f"a note has 1 to {NOTE_CHARACTERS_MAX} characters")
    if key is not None and not _KEY.fullmatch(key):
        raise typer.BadParameter("a key has 1 to 255 visible ASCII characters")
    entry = run_on_database(
        load_settings(),
        lambda database: accounts.add_grant(
            database,
            COMMAND_LINE,
            key or create_id(utc_now()),
            user_id=user_id,
            kind=EntryKind.ADJUSTMENT if adjustment else EntryKind.GRANT,
            usd=_parse_amount(amount),
            note=note,
        ),
    )
    usd = format_dollars(format_usd(entry.amount_nano_usd))
    print(f"{entry.kind.value}: {usd} for {entry.user_id}")


def assign_payer(user_id: str, customer_id: str) -> None:
    """Name the customer at Stripe as which a user pays, such as after restoring a backup."""
    if not re.fullmatch(STRIPE_ID_PATTERN, customer_id):
        raise typer.BadParameter(f"{customer_id!r} is not the id of a customer, such as cus_Nffr")
    run_on_database(
        load_settings(),
        lambda database: payers.assign_payer(database, COMMAND_LINE, user_id, customer_id),
    )
    print(f"assigned: {user_id}")


def _parse_amount(amount: str) -> Decimal:
    if not _AMOUNT.fullmatch(amount):
        raise typer.BadParameter(f"{amount!r} is not an amount in USD, such as 5 or 0.25")
    return Decimal(amount)
