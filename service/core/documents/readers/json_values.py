"""Reads JSON and NDJSON with the standard library: values with their paths, records as rows."""

import json
from collections.abc import Iterator
from typing import Any

from service.core.documents.readers.extracted import Extracted, Format, TextBuilder
from service.core.errors import FileUnreadable
from service.core.text.decoding import decode_text


def read_json(data: bytes, bytes_max: int) -> Extracted:
    """Read a JSON value or one per line; any other text as it is. Raises `NotText`, `TooLarge`."""
    text, encoding = decode_text(data)
    try:
        value = _parse(text)
        builder = TextBuilder(bytes_max)
        for line in _format_value(value):
            builder.add(line)
    except RecursionError as error:
        raise FileUnreadable("the JSON is nested too deeply") from error
    except ValueError:
        return Extracted(text=text, format=Format.TEXT, encoding=encoding)
    return Extracted(text=builder.build(), format=Format.JSON, encoding=encoding)


def _parse(text: str) -> Any:
    """Parse one value, or a list of the values of all lines. Raises `ValueError`."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _format_value(value: Any) -> Iterator[str]:
    """Yield records as rows; of an object, a row for each value and a section for each list."""
    if isinstance(value, list):
        for item in value:
            yield f"- {'; '.join(_flatten(item, ''))}\n"
        return
    if not isinstance(value, dict):
        yield f"{value}\n"
        return
    sections = {key: item for key, item in value.items() if _is_records(item)}
    for key, item in value.items():
        if key not in sections:
            yield from (f"- {pair}\n" for pair in _flatten(item, key))
    for key, item in sections.items():
        yield f"\n## {key}\n\n"
        yield from _format_value(item)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _flatten(value: Any, path: str) -> Iterator[str]:
    """Yield `path: value` for each value in a nested value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            yield from _flatten(item, path)
    elif value not in (None, "", []):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield f"{path}: {' '.join(text.split())}" if path else " ".join(text.split())
