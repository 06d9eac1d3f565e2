"""Quarantine: one JSON file for each record that the database rejects permanently."""

import asyncio
from pathlib import Path

import msgspec

from service.core.records import Outcome
from service.core.telemetry import log


async def quarantine_record(folder: Path, outcome: Outcome, error: Exception) -> None:
    """Write the record to its file. Raises OSError."""
    file = folder / f"{outcome.intent.id}.json"
    await asyncio.to_thread(_write_file, file, msgspec.json.encode(outcome))
    log.error(
        "record.quarantined",
        answer_id=outcome.intent.id,
        file=file.name,
        error=type(error).__name__,
    )


def _write_file(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
