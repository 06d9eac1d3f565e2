"""The invariants of the account, checked against the truth of the provider after every scenario.

Prompts are unique in these tests, so a prompt names an answer; retries of one answer share it.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.fakes.provider import Call

EMBEDDINGS = "/v1/embeddings"  # its rows have no prompt
_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
)


def read_log(data_dir: Path) -> list[dict[str, Any]]:
    """Read every row of the log from the file."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM request_logs ORDER BY seq")]


def check(
    data_dir: Path, calls: Iterable[Call], acknowledged: Iterable[str]
) -> list[dict[str, Any]]:
    """Assert all invariants and return the rows.

    `acknowledged`: prompts whose caller received `done` or a 200.
    """
    rows = read_log(data_dir)
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["endpoint"] == EMBEDDINGS:
            continue
        by_prompt.setdefault(row["prompt"], []).append(row)

    calls_by_prompt: dict[str, list[Call]] = {}
    for call in calls:
        calls_by_prompt.setdefault(call.prompt, []).append(call)
    missing = [prompt for prompt in calls_by_prompt if prompt not in by_prompt]
    doubled = [prompt for prompt, rows_of_prompt in by_prompt.items() if len(rows_of_prompt) > 1]
    assert (missing, doubled) == (
        [],
        [],
    )  # I1, I2: one row for every answer that reached the provider

    for prompt, rows_of_prompt in by_prompt.items():
        _check_row(rows_of_prompt[0], calls_by_prompt.get(prompt, []))
    not_final = [
        prompt
        for prompt in acknowledged
        if by_prompt[prompt][0]["usage_source"] not in ("provider", "none")
    ]
    assert not_final == []  # I7: acknowledged answers are recorded with the provider's usage
    _check_totals(data_dir, rows)
    return rows


def check_attempts(rows: Iterable[dict[str, Any]], calls: Mapping[str, Iterable[Call]]) -> int:
    """Assert that the log has every call of these providers, by name, once.

    `rows`: an export. The last attempt of an answer that was ended from outside may have no call.
    Returns the number of attempts of answers with several.
    """
    called = Counter((call.prompt, name) for name in calls for call in calls[name])
    recorded: Counter[tuple[str, str]] = Counter()
    spare: set[tuple[str, str]] = set()
    several = 0
    for row in rows:
        attempts = row.get("attempt_list") or []
        assert len(attempts) == (row["attempts"] if row["attempts"] > 1 else 0), row
        names = [attempt["provider"] for attempt in attempts] or [row["provider"]] * row["attempts"]
        recorded.update((row["prompt"], name) for name in names)
        if row["status"] in ("interrupted", "stopped", "client_gone"):
            spare.add((row["prompt"], names[-1]))
        several += len(attempts)
    assert called - recorded == Counter()  # I8: no call without an attempt
    assert all(place in spare and n == 1 for place, n in (recorded - called).items())
    return several


def _check_row(row: dict[str, Any], calls: list[Call]) -> None:
    usages = [call.usage for call in calls if isinstance(call.usage, dict)]
    if row["usage_source"] == "provider":  # I3: as reported by the provider
        assert any(
            (row["prompt_tokens"], row["completion_tokens"])
            == (u["prompt_tokens"], u["completion_tokens"])
            for u in usages
        ), row
    elif row["usage_source"] == "unknown":  # I5: never a silent 0
        assert row["prompt_tokens"] is row["completion_tokens"] is row["cost_nano_usd"] is None, row
    elif row["usage_source"] == "none":
        assert (row["prompt_tokens"], row["completion_tokens"], row["cost_nano_usd"]) == (
            0,
            0,
            0,
        ), row
    else:
        assert row["prompt_tokens"] > 0, row
        assert row["completion_tokens"] >= 0, row
    if row["response"] and row["status"] != "no_context":
        assert any(call.text.startswith(row["response"]) for call in calls), row


def _check_totals(data_dir: Path, rows: list[dict[str, Any]]) -> None:
    """I4: the totals are the sum of the rows, to the nano-dollar."""
    with sqlite3.connect(data_dir / "kotae.db") as connection:
        columns = ", ".join(f"coalesce(sum({name}), 0)" for name in ("answers", *_COUNTS))
        totals = connection.execute(f"SELECT {columns} FROM rollups").fetchone()
    assert totals == (len(rows), *(sum(row[name] or 0 for row in rows) for name in _COUNTS))
