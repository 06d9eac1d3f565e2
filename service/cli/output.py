"""Tables, JSON and highlighted texts on standard output; progress on standard error."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
PROGRESS_SECONDS = 10.0
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
        table.add_row(*[Text("" if cell is None else make_printable(str(cell))) for cell in row])
    if not table.row_count:
        print(empty, file=sys.stderr)
        return
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(table)


def make_printable(text: str, *, keep: str = "") -> str:
    """Replace control characters, with which a document could control the terminal.

    Those in `keep` stay.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else "\ufffd", text)


def print_highlighted(title: str, text: str, words: Iterable[str]) -> None:
    """Print a title and a text below it, in which words are highlighted on a terminal."""
    body = Text(f"  {make_printable(text)}\n")
    for word in words:
        body.highlight_regex(f"(?i){re.escape(word)}", "bold yellow")
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(make_printable(title), "bold"))
    console.print(body)


@contextmanager
def show_progress(
    label: str, total: int, *, seconds: float = PROGRESS_SECONDS
) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar on standard error.

    Without a terminal, a line is printed at most every `seconds`.
    """
    if sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.advance(task, count)
        return
    done, printed_at = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed_at
        done += count
        if time.monotonic() - printed_at >= seconds:
            printed_at = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr)

    yield advance


def format_time(time: datetime | None, absent: str = "") -> str:
    """A time to the minute, in UTC as stored."""
    return f"{time:%Y-%m-%d %H:%M}" if time else absent


def format_dollars(usd: str) -> str:
    """Format a decimal string in USD with its sign first ("-$0.01")."""
    return f"-${usd[1:]}" if usd.startswith("-") else f"${usd}"
