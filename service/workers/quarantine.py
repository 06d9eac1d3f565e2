"""Where records go that the database will never take: one JSON file each, so that nothing is lost and nothing is held up."""

import asyncio
from pathlib import Path

import msgspec

from service.core.records import Outcome
from service.core.telemetry import log


async def quarantine_records(folder: Path, outcome: Outcome, error: Exception) -> None:
    """Write the record to its file. Raises OSError."""
    file = folder / f"{outcome.intent.id}.json"
    await asyncio.to_thread(_write, file, msgspec.json.encode(outcome))
    log.error(
        "record.quarantined",
        answer_id=outcome.intent.id,
        file=file.name,
        error=type(error).__name__,
    )


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
