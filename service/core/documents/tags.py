"""Tags of documents: in lower case, stored as lines, so that a condition can find one."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from service.core.database.tables import documents
from service.core.encoding import sanitize_text


def normalize_tag(tag: str) -> str:
    """A tag as it is stored and compared."""
    return " ".join(sanitize_text(tag).split()).lower()


def encode_tags(tags: Iterable[str]) -> str:
    """The value of the column: each different tag on a line, between newlines."""
    lines = sorted({normalize_tag(tag) for tag in tags} - {""})
    return "\n".join(["", *lines, ""]) if lines else ""


def decode_tags(value: str) -> list[str]:
    """The tags of a value of the column."""
    return [line for line in value.split("\n") if line]


def has_tag(tags: Sequence[str]) -> Any:
    """The condition that a document has one of these tags."""
    return sa.or_(
        sa.false(),
        *(documents.c.tags.contains(f"\n{normalize_tag(tag)}\n", autoescape=True) for tag in tags),
    )
