"""The `--limit NAME=VALUE` option."""

from decimal import Decimal
from typing import Annotated

import typer

from service.core.ports import QuotaLimits
from service.core.pricing import to_nano_usd

Limit = Annotated[
    list[str],
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="As in the API, such as tokens_per_day=50000 or cost_usd_per_month=20. Repeat.",
    ),
]


def parse_limits(given: list[str]) -> QuotaLimits:
    """Parse NAME=VALUE options. Raises `typer.BadParameter` for unknown names and invalid numbers."""
    found: dict[str, int] = {}
    for one in given:
        shown, _, value = one.partition("=")
        name = shown.strip().replace("usd", "nano_usd")
        if name not in QuotaLimits.__struct_fields__:
            known = ", ".join(
                field.replace("nano_usd", "usd") for field in QuotaLimits.__struct_fields__
            )
            raise typer.BadParameter(f"{shown!r} is none of {known}")
        try:
            found[name] = to_nano_usd(Decimal(value)) if "nano_usd" in name else int(value)
        except (ArithmeticError, ValueError) as error:
            raise typer.BadParameter(f"{one!r} has no number") from error
        if found[name] < 0:
            raise typer.BadParameter(f"{one!r} is less than nothing")
    return QuotaLimits(**found)
