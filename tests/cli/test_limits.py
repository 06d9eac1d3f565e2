"""The option `--limit NAME=VALUE`."""

import pytest
import typer

from service.cli.limits import parse_limits
from service.core.ports import QuotaLimits


def test_limits_are_parsed() -> None:
    """Amounts in USD become nano-dollars, all other limits are integers."""
    limits = parse_limits(["tokens_per_day=5000", "cost_usd_per_month=1.50", " concurrent =3"])

    assert limits == QuotaLimits(
        tokens_per_day=5000, cost_nano_usd_per_month=1_500_000_000, concurrent=3
    )
    assert parse_limits([]) == QuotaLimits()


@pytest.mark.parametrize(
    "option",
    [
        "tokens=5",
        "tokens_per_day=many",
        "cost_usd_per_day=x",
        "concurrent=-1",
        "concurrent",
        "=",
        "",
    ],
)
def test_an_invalid_limit_is_refused(option: str) -> None:
    """An unknown name, a missing number and a negative one are errors of usage."""
    with pytest.raises(typer.BadParameter):
        parse_limits([option])
