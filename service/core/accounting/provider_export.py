"""The account of a provider by day and model, and its export as CSV."""

import csv
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from service.core.errors import KotaeError

EXPORT_KEYS_MAX = 100_000  # days × models of one export
# Column names in providers' exports, in order of preference.
_DATE_COLUMNS = ("date", "day", "usage_date", "start_time", "start_time_iso", "timestamp")
_MODEL_COLUMNS = ("model", "model_name", "model_id")
_PROMPT_COLUMNS = ("input_tokens", "prompt_tokens", "n_context_tokens_total")
_COMPLETION_COLUMNS = ("output_tokens", "completion_tokens", "n_generated_tokens_total")
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class ProviderUsage(msgspec.Struct):
    """Tokens of a day and model at the provider. `nano_usd`: their cost; None: not reported."""

    prompt: int = 0
    completion: int = 0
    nano_usd: int | None = None


class Export(msgspec.Struct):
    """The usage by UTC day and model (without the date of its snapshot) of the days of a period.

    `provider`: whose calls it contains, by the name in the log; None: those of all providers.
    """

    usages: dict[tuple[str, str], ProviderUsage]
    first: str
    last: str
    provider: str | None = None

    def find_usage(self, day: str, model: str) -> ProviderUsage:
        """The usage of a day and model, to be added to. Raises `KotaeError` for too many."""
        if len(self.usages) > EXPORT_KEYS_MAX:
            raise KotaeError(
                f"more than {EXPORT_KEYS_MAX:,} days and models: select a shorter period"
            )
        return self.usages.setdefault((day, remove_snapshot(model)), ProviderUsage())


def read_export(file: Path, provider: str | None = None) -> Export:
    """Read a provider's usage export (CSV), summed by UTC day and model.

    Raises `KotaeError`.
    """
    export = Export({}, "", "", provider)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            header = {
                name.strip().lower().replace(" ", "_"): name for name in rows.fieldnames or ()
            }
            names = [
                _find_column(header, candidates)
                for candidates in (
                    _DATE_COLUMNS,
                    _MODEL_COLUMNS,
                    _PROMPT_COLUMNS,
                    _COMPLETION_COLUMNS,
                )
            ]
            for row in rows:
                try:
                    at, model, prompt, completion = ((row[name] or "").strip() for name in names)
                    if not model:
                        raise ValueError("no model")  # noqa: TRY301 - reported with its line below
                    usage = export.find_usage(_parse_day(at), model)
                    usage.prompt += _parse_count(prompt)
                    usage.completion += _parse_count(completion)
                except (ValueError, ArithmeticError) as error:
                    raise KotaeError(f"{file}, line {rows.line_num}: {error}") from error
    except OSError as error:
        raise KotaeError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise KotaeError(f"{file} is not CSV in UTF-8: {error}") from error
    days = [day for day, _ in export.usages]
    export.first, export.last = min(days, default=""), max(days, default="")
    return export


def _find_column(header: dict[str, str], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if name in header:
            return header[name]
    raise KotaeError(
        f"the export has no column {' or '.join(candidates[:3])};"
        f" its columns: {', '.join(header) or 'none'}"
    )


def _parse_day(text: str) -> str:
    """Return the UTC day of a date, a time (UTC without an offset), or seconds since 1970."""
    if text.isascii() and text.isdigit() and len(text) > 8:
        return str(datetime.fromtimestamp(int(text), UTC).date())
    at = datetime.fromisoformat(text)
    return str((at.astimezone(UTC) if at.tzinfo else at).date())


def _parse_count(text: str) -> int:
    count = int(text.replace(",", "") or "0")
    if count < 0:
        raise ValueError(f"{text} tokens")
    return count


def remove_snapshot(model: str) -> str:
    """Return the name of a model without the date of its snapshot."""
    return _SNAPSHOT.sub("", model)
