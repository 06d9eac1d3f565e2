"""Zip archives: their limits, and damage."""

import io
import zipfile

import pytest

from service.core.documents.readers.archive import (
    ENTRIES_MAX,
    EXPANDED_BYTES_MAX,
    PART_BYTES_MAX,
    Archive,
)
from service.core.errors import FileUnreadable, TooLarge
from tests.fakes.files import build_zip


def declare_size(data: bytes, name: bytes, size: int) -> bytes:
    """Change the size of an entry in the directory of an archive."""
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(name))
    return data[: entry + 24] + size.to_bytes(4, "little") + data[entry + 28 :]


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", build_zip({"a": "b"})[:-10], b"x" * 100],
    ids=["empty", "signature", "cut", "letters"],
)
def test_a_damaged_archive_is_rejected(data: bytes) -> None:
    """Before anything is read."""
    with pytest.raises(FileUnreadable, match="damaged or incomplete"):
        Archive(data)


def test_too_many_entries_are_rejected() -> None:
    """Each of them costs time."""
    with pytest.raises(TooLarge, match="entries"):
        Archive(build_zip({str(n): "" for n in range(ENTRIES_MAX + 1)}))


def test_an_entry_that_expands_too_much_is_rejected() -> None:
    """A bomb, with the highest ratio that the compression allows."""
    with pytest.raises(TooLarge, match="times its size"):
        Archive(build_zip({"bomb": bytes(10_000_000)}))


def test_the_declared_sizes_are_limited_together() -> None:
    """Sizes of single entries may be within their limits."""
    data = build_zip({f"f{n}": "x" for n in range(10)})
    for n in range(10):
        data = declare_size(data, f"f{n}".encode(), EXPANDED_BYTES_MAX // 10 + 1)
    with pytest.raises(TooLarge, match="expands to more than"):
        Archive(data)


def test_a_part_is_limited() -> None:
    """It is read into memory as a whole."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("f", b"x")
    data = declare_size(file.getvalue(), b"f", PART_BYTES_MAX + 1)
    data = data.replace(b"PK\x01\x02", b"PK\x01\x02")
    with pytest.raises(TooLarge):
        Archive(data).read("f")


def test_an_entry_that_is_larger_than_declared_is_rejected() -> None:
    """No more than the declared size is read, whose CRC does not match."""
    data = declare_size(build_zip({"bomb": bytes(2_000_000)}), b"bomb", 100)
    with pytest.raises(FileUnreadable, match="damaged"):
        Archive(data).read("bomb")


def test_encrypted_entries_are_rejected() -> None:
    """With what to do."""
    data = bytearray(build_zip({"a": "b"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(FileUnreadable, match="without a password"):
        Archive(bytes(data))


@pytest.mark.parametrize(
    "xml",
    [
        "<a>",
        '<!DOCTYPE x [<!ENTITY file SYSTEM "/etc/passwd">]><a>&file;</a>',
        "<a>&undefined;</a>",
    ],
)
def test_xml_that_is_not_well_formed_is_rejected(xml: str) -> None:
    """An external entity is not defined, as it is not loaded."""
    with pytest.raises(FileUnreadable, match="not well-formed XML"):
        Archive(build_zip({"a.xml": xml})).parse_xml("a.xml")
