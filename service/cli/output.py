"""Tables and JSON on standard output."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
_WIDE = 10_000  # columns of output that is not shown on a terminal: lines are not wrapped


def print_json(items: Iterable[Any]) -> None:
    """Print one JSON object per line."""
    for item in items:
        print(msgspec.json.encode(item).decode())


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    empty: str,
) -> None:
    """Print a table with a header, or the hint `empty` on standard error if there are no rows.

    The columns named by `right` are aligned to the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    aligned = frozenset(right)
    for header in headers:
        table.add_column(header, justify="right" if header in aligned else "left", no_wrap=True)
    for row in rows:
        table.add_row(*[Text("" if cell is None else str(cell)) for cell in row])
    if not table.row_count:
        print(empty, file=sys.stderr)
        return
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(table)


def format_time(time: datetime | None, absent: str = "") -> str:
    """A time to the minute, in UTC as stored."""
    return f"{time:%Y-%m-%d %H:%M}" if time else absent
