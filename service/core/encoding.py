"""Ids, timestamps, clean text and JSON."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import uuid_utils

_encode = msgspec.json.Encoder().encode


def new_id(at: datetime) -> str:
    """A UUIDv7 (RFC 9562 §5.7) of this moment: ids sort by time."""
    return str(uuid_utils.uuid7(nanoseconds=int(at.timestamp() * 1000) * 1_000_000))


def now() -> datetime:
    """The present moment in UTC, cut to the millisecond that an id carries."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def clean(text: str) -> str:
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
