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
        help="A limit as in the API, such as tokens_per_day=50000. Repeatable.",
    ),
]


def parse_limits(options: list[str]) -> QuotaLimits:
    """Parse NAME=VALUE options. Raises `typer.BadParameter`."""
    values: dict[str, int] = {}
    for option in options:
        public_name, _, value = option.partition("=")
        name = public_name.strip().replace("usd", "nano_usd")
        if name not in QuotaLimits.__struct_fields__:
            names = ", ".join(
                field.replace("nano_usd", "usd") for field in QuotaLimits.__struct_fields__
            )
            raise typer.BadParameter(f"{public_name!r} is none of {names}")
        try:
            values[name] = to_nano_usd(Decimal(value)) if "nano_usd" in name else int(value)
        except (ArithmeticError, ValueError) as error:
            raise typer.BadParameter(f"{option!r} has no number") from error
        if values[name] < 0:
            raise typer.BadParameter(f"{option!r} is negative")
    return QuotaLimits(**values)


def format_limits(limits: QuotaLimits) -> str:
    """Format limits as NAME=VALUE, separated by spaces."""
    return " ".join(f"{name}={value}" for name, value in limits.to_wire().items())
