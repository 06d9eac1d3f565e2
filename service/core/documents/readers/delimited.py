"""Reads CSV and TSV with the standard library: rows as `header: value`."""

import csv
import io
import sys
from collections import Counter
from itertools import islice

from service.core.documents.readers.extracted import Extracted, Format, TextBuilder, format_rows
from service.core.errors import FileUnreadable
from service.core.text.decoding import decode_text

DELIMITERS = ",;\t|"
SAMPLE_ROWS = 20  # from which the delimiter is determined


def read_delimited(data: bytes, bytes_max: int) -> Extracted:
    """Read a table, or a text without columns as it is. Raises `NotText`, `TooLarge`."""
    text, encoding = decode_text(data)
    csv.field_size_limit(sys.maxsize)
    delimiter = find_delimiter(text)
    if delimiter is None:
        return Extracted(text=text, format=Format.TEXT, encoding=encoding)
    builder = TextBuilder(bytes_max)
    try:
        for row in format_rows(csv.reader(io.StringIO(text), delimiter=delimiter)):
            builder.add(row)
    except csv.Error as error:
        raise FileUnreadable(f"the table cannot be read: {error}") from error
    return Extracted(text=builder.build(), format=Format.CSV, encoding=encoding)


def find_delimiter(text: str) -> str | None:
    """The delimiter with which most of the first rows have equally many columns; None: none."""
    scores = {}
    for delimiter in DELIMITERS:
        rows = list(islice(csv.reader(io.StringIO(text), delimiter=delimiter), SAMPLE_ROWS))
        columns = Counter(len(row) for row in rows if any(row))
        (count, frequency), *_ = columns.most_common(1) or [(0, 0)]
        if count > 1 and 2 * frequency > columns.total():
            scores[delimiter] = (frequency, count)
    return max(scores, key=scores.__getitem__, default=None)
