"""Ids, timestamps, clean text and JSON."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import uuid_utils

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode


def create_id(at: datetime) -> str:
    """A UUIDv7 (RFC 9562 §5.7) of this moment: ids sort by time."""
    return str(uuid_utils.uuid7(nanoseconds=(at - _EPOCH) // _MILLISECOND * 1_000_000))


def first_id(at: datetime) -> str:
    """The time bits of a UUIDv7, a lower bound of the ids of this millisecond and later. Before 1970: of all ids."""
    milliseconds = max(0, (at - _EPOCH) // _MILLISECOND)
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def read_id_time(text: str) -> datetime | None:
    """The moment of a UUIDv7, to the millisecond; None if the text is no UUIDv7 in its canonical form."""
    try:
        uuid = uuid_utils.UUID(text)
        at = _EPOCH + uuid.timestamp * _MILLISECOND if uuid.version == 7 else None
    except (ValueError, OverflowError):
        return None
    return at if str(uuid) == text else None


def utc_now() -> datetime:
    """The present moment in UTC, cut to the millisecond that an id carries."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def replace_surrogates(text: str) -> str:
    """The text without lone surrogates, which neither UTF-8 nor JSON can carry: each becomes U+FFFD."""
    if text.isascii() or not _has_surrogate(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def to_json(value: Any) -> bytes:
    """JSON on one line; times as RFC 3339."""
    return _encode(value)
