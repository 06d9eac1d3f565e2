"""Ids, timestamps, valid Unicode, JSON and rows of the database."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import uuid_utils

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
QUARTER_SECONDS, QUARTERS_PER_DAY = 900, 96
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


def create_id(at: datetime, slot: int | None = None) -> str:
    """Create a UUIDv7 (RFC 9562 §5.7) for this time; ids sort by time.

    `slot`: the replica that creates the answer, which replaces 16 of the 74 random bits.
    """
    text = str(uuid_utils.uuid7(nanoseconds=(at - EPOCH) // _MILLISECOND * 1_000_000))
    return text if slot is None else f"{text[:24]}{slot:04x}{text[28:]}"


def read_slot(text: str) -> int:
    """Return the slot in an id with the form of a UUIDv7; ids without a slot have a random one."""
    return int(text[24:28], 16)


def compute_first_id(at: datetime) -> str:
    """Return a bound below the ids of this millisecond and later; before 1970: of all.

    It has the form of an id, but not the version number.
    """
    milliseconds = max(0, (at - EPOCH) // _MILLISECOND)
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-0000-0000-000000000000"


def read_id_time(text: str) -> datetime | None:
    """Return the time of a UUIDv7 in milliseconds; None if it is not a canonical UUIDv7."""
    try:
        uuid = uuid_utils.UUID(text)
        at = EPOCH + uuid.timestamp * _MILLISECOND if uuid.version == 7 else None
    except (ValueError, OverflowError):
        return None
    return at if str(uuid) == text else None


def find_quarter(at: datetime) -> int:
    """Return the number of a quarter of an hour since 1970; `constructs.to_quarter` in SQL."""
    return int(at.timestamp()) // QUARTER_SECONDS


def utc_now() -> datetime:
    """Return the current time in UTC, truncated to milliseconds like ids."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 and JSON cannot encode, by U+FFFD."""
    if text.isascii() or not _has_surrogate(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sanitize_text(text: str) -> str:
    """Replace lone surrogates, and NUL, which PostgreSQL cannot store, by U+FFFD."""
    return replace_surrogates(text.replace("\0", "\ufffd") if "\0" in text else text)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def to_json(value: Any) -> bytes:
    """Encode as JSON on one line; times as RFC 3339."""
    return _encode(value)


def convert_row(row: Mapping[Any, Any], kind: type[T]) -> T:
    """Return a database row as a struct with fields of the same names; other columns are ignored.

    SQLAlchemy's names are of a subclass of `str`, which msgspec does not accept.
    """
    return msgspec.convert({str(name): value for name, value in row.items()}, kind)
